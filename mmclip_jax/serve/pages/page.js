"use strict";
// Every text of an answer goes in as text, never as markup.
const at = (id) => document.getElementById(id);
const result = at("result");
const mostBytes = Number(document.body.dataset.mostBytes);
let image = null; // the file in hand: each request sends it anew, the server keeps none
let running = null; // the request that is under way; a newer one takes its place

function tell(message) {
  at("status").textContent = message;
  at("error").hidden = true;
}

function fail(message) {
  at("status").textContent = "";
  at("error").textContent = message;
  at("error").hidden = false;
}

async function ask(path, body, headers = {}) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  result.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(path, {
      method: "POST",
      body,
      headers: { "Content-Type": "application/octet-stream", ...headers },
      signal: mine.signal,
    });
    if (answer.status === 401) {
      location.reload();
      return null;
    }
    const said = await answer.json().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { error: `The server answered ${answer.status}. Try again in a moment.` }; // too many connections: plain text
    });
    if (!answer.ok) {
      fail(said.error);
      return null;
    }
    return said;
  } catch (error) {
    if (error.name !== "AbortError") fail("The server does not answer. Is mmclip serve still running?");
    return null;
  } finally {
    if (running === mine) {
      running = null;
      result.removeAttribute("aria-busy");
    }
  }
}

function add(parent, kind, text, name = "") {
  const made = parent.appendChild(document.createElement(kind));
  made.textContent = text;
  made.className = name;
  return made;
}

function findingRow(found) {
  const row = document.createElement("tr");
  add(row, "th", found.finding).scope = "row";
  const value = add(row, "td", "");
  const line = add(value, "div", "", "value");
  const bar = add(line, "div", "", "bar");
  bar.setAttribute("aria-hidden", "true");
  add(bar, "span", "", "fill").style.width = `${100 * found.probability}%`;
  add(line, "span", found.probability.toFixed(3), "number");
  if (found.threshold !== undefined) {
    add(bar, "span", "", "mark").style.left = `${100 * found.threshold}%`;
    add(value, "div", `${found.positive ? "≥" : "<"} threshold ${found.threshold.toFixed(3)}`, "beside");
    row.classList.toggle("positive", found.positive);
  }
  add(value, "div", found.exposure, "exposure");
  return row;
}

function showFindings(said) {
  const cards = said.models.map((model) => {
    const card = at("card").content.cloneNode(true);
    const find = (selector) => card.querySelector(selector);
    find(".name").textContent = `${model.name}, step ${model.step.toLocaleString("en")}`;
    find(".picture").src = said.image;
    find(".picture").alt = `The image, ${said.width} x ${said.height} pixels, on a black square`;
    find("figcaption").textContent = model.reads_words
      ? `${said.width} × ${said.height} pixels.`
      : `${said.width} × ${said.height} pixels. A fine-tuned classifier reads no words and has no maps.`;
    find("caption").textContent = `Learnt from ${model.domain}. ${model.note}`;
    find("tbody").append(...model.findings.map(findingRow));
    const sources = new Set(model.findings.map((found) => found.threshold_from).filter(Boolean));
    find(".thresholds").textContent = [...sources].map((source) => `Thresholds: ${source}.`).join(" ");
    return card;
  });
  result.replaceChildren(...cards);
  result.classList.toggle("several", said.models.length > 1);
  result.hidden = false;
}

function showMaps(said) {
  said.models.forEach((model, number) => {
    const card = result.children[number];
    if (!card || !model.map) return;
    const picture = card.querySelector(".picture");
    picture.src = model.map;
    picture.alt = `The image with the response to “${said.words}” over it`;
    const caption = card.querySelector("figcaption");
    caption.textContent = `Response to “${said.words}”: cosine similarity ${model.similarity.toFixed(3)} (${model.exposure}). Learnt from ${model.domain}. ${model.note} `;
    const keep = add(caption, "a", "Save as a figure");
    keep.href = model.figure;
    keep.download = "response.png";
  });
}

async function take(blob, words) {
  if (blob.size > mostBytes) {
    fail(`The file has ${(blob.size / 1e6).toFixed(1)} MB: at most ${mostBytes / 1e6} MB are taken.`);
    return;
  }
  tell("Looking at the image …");
  const said = await ask("/findings", blob);
  if (!said) return;
  image = blob;
  showFindings(said);
  tell(words);
}

async function takeFiles(files) {
  if (!files.length) return;
  const more = files.length > 1 ? ` Of ${files.length} files the first alone was taken.` : "";
  await take(files[0], `The findings of your image.${more}`);
}

at("file").addEventListener("change", (event) => takeFiles(event.target.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") takeFiles(event.dataTransfer.files);
  });
}

for (const button of document.querySelectorAll("[data-example]")) {
  button.addEventListener("click", async () => {
    const answer = await fetch(`/examples/${button.dataset.example}.png`);
    if (!answer.ok) return fail("The example cannot be drawn.");
    const drawn = answer.headers.get("X-Drawn");
    await take(await answer.blob(), `The findings of an artificial X-ray. Drawn into it: ${drawn}.`);
  });
}

const form = at("ask");
if (form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const words = at("words").value.trim();
    if (!image) return fail("Choose an image first.");
    if (!words) return fail("Type what to look for.");
    tell("Drawing the map …");
    const said = await ask("/map", image, { "X-Words": encodeURIComponent(words) });
    if (!said) return;
    showMaps(said);
    tell(`The response to “${said.words}” lies over the image.`);
  });
}
