"""The packages of the wheel: pyproject.toml holds the rest. The folder configs/ ships as mmclip_jax.configs."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["mmclip_jax*"]), "mmclip_jax.configs"],
    package_dir={"mmclip_jax.configs": "configs"},
)
