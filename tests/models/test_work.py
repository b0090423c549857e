"""FLOPs of matrix products, written out by hand."""

from mmclip_jax.models import work


def test_a_layer_by_hand() -> None:
    # 3 positions of width 8, a context of 5, an MLP of 11: written out product by product.
    found = work.layers({"width": 8, "depth": 1, "mlp_dim": 11}, 3, 5)
    own = 4 * (2 * 3 * 8 * 8) + 2 * (2 * 3 * 8 * 3)
    cross = 2 * (2 * 3 * 8 * 8) + 2 * (2 * 5 * 8 * 8) + 2 * (2 * 3 * 8 * 5)
    mlp = 2 * (2 * 3 * 8 * 11)
    assert found.forward == own + cross + mlp
    assert found.backward == 2 * found.forward
    assert found.again == 0
    assert work.layers({"width": 8, "depth": 4, "mlp_dim": 11}, 3, 5).forward == 4 * found.forward


def test_the_stem_by_hand() -> None:
    # 16 px in patches of 4: 8 x 8 places of 9 pixels to 6 channels, 4 x 4 places of 54 values to 12, then 12 to 12.
    found = work.conv_stem(16, 4, 12)
    products = [2 * 64 * 9 * 6, 2 * 16 * 54 * 12, 2 * 16 * 12 * 12]
    assert found.forward == sum(products)
    assert found.backward == products[0] + 2 * products[1] + 2 * products[2]


def test_a_head_of_two_layers_by_hand() -> None:
    assert work.head(7, 11, 5).forward == 2 * 7 * 11 * 5
    found = work.head(7, 11, 5, 13)
    assert found.forward == 2 * 7 * 11 * 13 + 2 * 7 * 13 * 5
    assert found.backward == 2 * found.forward
    assert work.head(7, 11, 5, 13, gradients=0).backward == 0
