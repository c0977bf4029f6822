// The page: what a visitor chooses, and what the server answers. No address here is absolute: a proxy may add a prefix.

import { Painter } from "./painter.js";
import { legendEntry, maskTable, moreMasks, percent, sentence, unlabelledEntry } from "./pieces.js";

const $ = (id) => document.getElementById(id);
const painter = new Painter($("view"));
const state = { about: null, file: null, example: "", scene: null, region: null, granularity: null, asked: 0, clicked: 0 };

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.error || `the server answered with status ${answer.status}`);
  return content;
}

const asJson = (value, method = "POST") => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
});

function show(id, visible) {
  $(id).hidden = !visible;
}

function fail(error) {
  $("error").textContent = error ? sentence(error.message) : "";
  show("error", Boolean(error));
}

// ---- what to segment

async function start() {
  const about = (state.about = await ask("api/about"));
  $("model").textContent = about.model;
  $("model").title = `${about.note || "model"}; licence: ${about.licence}`;
  show("model", true);
  $("words").value = about.words;
  for (const name of about.label_sets) $("label-set").add(new Option(name, name));
  for (const example of about.examples) $("examples").append(exampleButton(example));
  show("examples-box", about.examples.length > 0);
  about.proposers.forEach(({ name }, index) => $("proposers").append(proposerChoice(name, index === 0)));
  show("proposer-box", about.proposers.length > 1);
  $("footer").textContent =
    `Images stay in the server's memory for ${about.minutes} minutes after their last use, and are not stored. ` +
    `ovseg ${about.version}. ${about.note ? sentence(about.note) : ""}`;
}

function exampleButton(example) {
  const button = document.createElement("button");
  const image = new Image();
  button.type = "button";
  button.title = image.alt = example.name;
  image.src = `api/examples/${encodeURIComponent(example.name)}`;
  button.append(image);
  button.addEventListener("click", () => {
    state.file = null;
    state.example = example.name;
    $("file").value = "";
    $("words").value = example.words.join(", ");
    $("label-set").value = "";
    $("words").disabled = false;
    preview(image.src, example.name);
    button.classList.add("chosen");
  });
  return button;
}

function proposerChoice(name, checked) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "proposer", value: name, checked });
  const text = document.createElement("span");
  text.textContent = { own: "the model's own", SAM: "Segment Anything", BoundaryTree: "boundary tree" }[name] || name;
  label.append(input, text);
  return label;
}

function preview(url, name) {
  for (const one of document.querySelectorAll(".examples .chosen")) one.classList.remove("chosen");
  $("preview").src = url;
  $("preview").onload = () => show("preview", true);
  $("preview").onerror = () => show("preview", false);
  $("drop-text").innerHTML = "<small></small>";
  $("drop-text").firstChild.textContent = name;
  fail(null);
}

function take(file) {
  if (!file) return;
  if (file.size > state.about.largest_upload) {
    const most = (state.about.largest_upload / 1e6).toPrecision(3);
    fail(new Error(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, and this server takes ${Number(most)} MB`));
    return;
  }
  URL.revokeObjectURL($("preview").src);
  state.file = file;
  state.example = "";
  preview(URL.createObjectURL(file), file.name);
}

$("file").addEventListener("change", () => take($("file").files[0]));
document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}
$("background-on").addEventListener("change", () => {
  for (const id of ["background", "background-hint"]) show(id, $("background-on").checked);
});
$("label-set").addEventListener("change", () => {
  $("words").disabled = $("label-set").value !== "";
});

// ---- segmenting

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  fail(null);
  if (!state.file && !state.example) return fail(new Error("there is no image: choose one, or an example"));
  const form = new FormData();
  if (state.file) form.append("image", state.file);
  form.append("example", state.example);
  form.append($("label-set").value ? "label_set" : "words", $("label-set").value || $("words").value);
  if ($("background-on").checked) form.append("background", $("background").value);
  form.append("proposer", document.querySelector("[name=proposer]:checked").value);
  if (state.granularity !== null) form.append("granularity", state.granularity);
  if (state.scene) form.append("before", state.scene.id);
  $("run").disabled = true;
  const stop = showProgress();
  try {
    const scene = await ask("api/scenes", { method: "POST", body: form });
    state.scene = scene;
    state.asked++; // answers of the scene before are not shown
    state.clicked++;
    show("empty", false);
    show("scene", true);
    show("results", true);
    await painter.showImage(`api/scenes/${scene.id}/image`);
    show("granularity-box", scene.keeps_masks);
    show("granularity-auto", scene.keeps_masks);
    for (const kind of ["drawing", "labels", "coco", "yolo"]) $(`get-${kind}`).href = `api/scenes/${scene.id}/files/${kind}`;
    await showPainting(scene);
    if (innerWidth <= 760) $("scene").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    fail(error);
  } finally {
    stop();
    $("run").disabled = false;
  }
});

function showProgress() {
  const begun = Date.now();
  const update = async () => {
    const seconds = Math.round((Date.now() - begun) / 1000);
    const { waiting } = await ask("health").catch(() => ({ waiting: 0 }));
    $("busy-text").textContent = `Segmenting… ${seconds} s${waiting ? `, ${waiting} requests wait` : ""}`;
  };
  $("busy-text").textContent = "Segmenting…";
  show("busy", true);
  const timer = setInterval(update, 1000);
  return () => {
    clearInterval(timer);
    show("busy", false);
  };
}

async function showPainting(painting) {
  if (!(await painter.showLabels(painting.labels, painting.words))) return; // a newer one is shown
  state.region = null;
  state.clicked++; // regions of the labels before are not shown
  show("region", false);
  show("region-empty", true);
  painter.fit();
  $("size").textContent = `${painting.width} × ${painting.height}`;
  const chosen = (label) => explain(`label=${label}`);
  const entries = painting.words.map((word) => legendEntry(word, chosen));
  $("legend").replaceChildren(...entries, ...unlabelledEntry(painting.unlabelled, chosen));
  $("absent").textContent = painting.absent.length ? `Not found: ${painting.absent.join(", ")}` : "";
  show("absent", painting.absent.length > 0 && painting.absent.length <= 30);
  $("known-names").replaceChildren(...painting.names.map((name) => new Option(name)));
  show("undo", painting.edits > 0);
  showGranularity(painting.granularity);
}

// ---- another rendering of the kept masks

function showGranularity(value) {
  state.granularity = value;
  if (value !== null) $("granularity").value = value;
  $("granularity-value").textContent = value === null ? "auto" : value.toFixed(2);
  $("granularity-auto").disabled = value === null;
}

async function change(path, options) {
  const number = ++state.asked;
  const { scene } = state;
  try {
    const painting = await ask(`api/scenes/${scene.id}/${path}`, options);
    if (number !== state.asked) return; // a newer one is on its way
    await showPainting(painting);
    fail(null);
  } catch (error) {
    if (scene === state.scene) fail(error);
  }
}

let timer = 0;
$("granularity").addEventListener("input", () => {
  showGranularity(Number($("granularity").value));
  clearTimeout(timer);
  timer = setTimeout(() => change("paint", asJson({ granularity: state.granularity })), 80);
});
$("granularity-auto").addEventListener("click", () => {
  showGranularity(null);
  change("paint", asJson({ granularity: null }));
});
$("opacity").addEventListener("input", () => {
  painter.opacity = Number($("opacity").value);
  painter.draw();
});
$("names").addEventListener("change", () => {
  painter.names = $("names").checked;
  painter.draw();
});
addEventListener("resize", () => state.scene && painter.fit());

// ---- regions

const place = (event) => {
  const box = $("overlay").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const within = ([x, y]) => x >= 0 && y >= 0 && x < 1 && y < 1;

$("overlay").addEventListener("pointermove", (event) => {
  const [x, y] = place(event);
  const word = within([x, y]) && painter.wordAt(x, y);
  show("tip", Boolean(word) && event.pointerType === "mouse");
  if (!word) return;
  const frame = $("frame").getBoundingClientRect();
  $("tip").textContent = word.word;
  $("tip").style.left = `${event.clientX - frame.left}px`;
  $("tip").style.top = `${event.clientY - frame.top}px`;
});
$("overlay").addEventListener("pointerleave", () => show("tip", false));
$("overlay").addEventListener("click", (event) => {
  const [x, y] = place(event);
  if (within([x, y])) explain(`x=${x}&y=${y}`);
});

async function explain(query) {
  const number = ++state.clicked;
  try {
    const region = await ask(`api/scenes/${state.scene.id}/region?${query}`);
    if (number !== state.clicked) return; // another region was clicked, or the labels were replaced
    state.region = region;
    showRegion(region);
    fail(null);
  } catch (error) {
    if (number === state.clicked) fail(error);
  }
}

function showRegion(region) {
  painter.choose(region.x, region.y);
  show("region-empty", false);
  show("region", true);
  const word = painter.words.get(region.label);
  $("region-color").className = word ? "swatch" : "swatch none";
  $("region-color").style.background = word ? word.color : "transparent";
  $("region-word").textContent = region.word === null ? "unlabelled" : region.word;
  $("region-share").textContent = `${percent(region.share)} of the image`;
  $("new-name").value = "";
  $("whole-word").checked = false;
  show("remove", region.word !== null);
  for (const entry of document.querySelectorAll(".legend button"))
    entry.classList.toggle("chosen", Number(entry.dataset.label) === region.label);
  const [first, ...others] = region.masks.map((mask) => maskTable(mask, state.scene.width * state.scene.height));
  $("masks").replaceChildren(first || noMasks(), ...(others.length ? [moreMasks(others)] : []));
}

function noMasks() {
  const text = document.createElement("p");
  text.className = "hint";
  text.textContent = state.scene.keeps_masks ? "No mask covers this place." : "This model has no masks to explain.";
  return text;
}

function correct(name) {
  const { x, y } = state.region;
  change("edits", asJson({ x, y, name, whole_word: $("whole-word").checked }));
}
$("rename").addEventListener("click", () => {
  if ($("new-name").value.trim()) correct($("new-name").value);
  else fail(new Error("there is no new word: write one, or drop the region"));
});
$("new-name").addEventListener("keydown", (event) => {
  if (event.key === "Enter") $("rename").click();
});
$("remove").addEventListener("click", () => correct(null));
$("undo").addEventListener("click", () => change("edits", { method: "DELETE" }));

start().catch(fail);
