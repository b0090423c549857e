"use strict";
// The printed address carries the token behind #, which no browser sends to any server.
const field = document.getElementById("token");
const error = document.getElementById("error");

async function signIn(token) {
  const answer = await fetch("/sign-in", { method: "POST", body: token, headers: { "Content-Type": "application/octet-stream" } });
  if (answer.ok) {
    location.replace("/");
    return;
  }
  error.textContent = (await answer.json()).error;
  error.hidden = false;
  field.focus();
}

document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(field.value);
});

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  history.replaceState(null, "", "/");
  signIn(given);
} else {
  field.focus();
}
