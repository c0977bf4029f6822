// Pieces of the page that are made of what the server answers.

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
export const percent = (share) => (share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

// An entry of the legend: word, colour, share.
export function legendEntry({ label, word, color, share, score }, chosen) {
  const entry = document.createElement("li");
  entry.innerHTML =
    '<button type="button"><span class="swatch"></span><span class="word"></span><span class="share"></span>' +
    '<span class="meter"><i></i></span></button>';
  const button = entry.firstChild;
  const [swatch, name, value, meter] = button.children;
  swatch.style.background = meter.firstChild.style.background = color;
  name.textContent = button.title = word;
  button.title = `${word}: mean score ${score.toFixed(3)}`;
  value.textContent = percent(share);
  meter.firstChild.style.width = `${100 * share}%`;
  button.dataset.label = label;
  button.addEventListener("click", () => chosen(label));
  return entry;
}

export function unlabelledEntry(share, chosen) {
  if (share < 1e-9) return [];
  const entry = legendEntry({ label: -1, word: "unlabelled", color: "transparent", share, score: 0 }, chosen);
  entry.firstChild.title = "pixels without a word";
  entry.querySelector(".swatch").classList.add("none");
  return [entry];
}

export function moreMasks(tables) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = `${tables.length} more ${tables.length === 1 ? "mask" : "masks"} here`;
  details.append(summary, ...tables);
  return details;
}

// The best words of a mask by each classifier, the rows of Segmentation.explain().
export function maskTable({ mask, area, words }, pixels) {
  const table = document.createElement("table");
  const columns = [
    ["own", "proposer"],
    ["clip", "CLIP"],
    ["fused", "fused"],
  ].filter(([key]) => words.some((word) => word[key] !== null));
  table.dataset.mask = mask;
  table.createCaption().textContent = `mask ${mask}, ${percent(area / pixels)} of the image`;
  const head = table.createTHead().insertRow();
  for (const title of ["word", ...columns.map(([, name]) => name)])
    head.append(Object.assign(document.createElement("th"), { textContent: title, scope: "col" }));
  const body = table.createTBody();
  for (const word of words) {
    const row = body.insertRow();
    row.insertCell().textContent = word.word;
    for (const [key] of columns) row.insertCell().textContent = word[key] === null ? "–" : word[key].toFixed(3);
  }
  return table;
}
