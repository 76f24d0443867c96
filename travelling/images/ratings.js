"use strict";
// Rating images by mouse or keyboard. Each element with data-subject holds radio buttons (keep, leave out, redo), a
// text field for a note and, in a button, a picture. The page has a button #export, an output #count, perhaps #large.
const cards = inOrder();
const store = `ratings ${document.body.dataset.page}`; // a page of other pictures is another page
const RATINGS = { k: "keep", l: "leave out", r: "redo", u: "" };
let exported = table();
let current = cards[0];

function inOrder() {
  return [...document.querySelectorAll("[data-subject]")]; // as they stand: the rows of a table can be sorted
}

function radios(card) {
  return [...card.querySelectorAll("input[type=radio]")];
}

function rating(card) {
  return radios(card).find((radio) => radio.checked)?.value ?? "";
}

function note(card) {
  return card.querySelector("input[type=text]");
}

function rate(card, value, remark = note(card).value) {
  for (const radio of radios(card)) radio.checked = radio.value === value;
  note(card).value = remark;
}

function table() {
  const cell = (text) => (text.includes('"') ? `"${text.replaceAll('"', '""')}"` : text || "n/a");
  const rows = cards
    .map((card) => [card.dataset.subject, rating(card), note(card).value.replace(/\s+/g, " ").trim()])
    .filter(([, value, remark]) => value || remark);
  return [["participant_id", "rating", "note"], ...rows].map((row) => `${row.map(cell).join("\t")}\n`).join("");
}

function changed() {
  const done = cards.filter(rating).length;
  document.querySelector("#count").textContent = `${done} of ${cards.length} rated`;
  for (const card of cards) card.dataset.rating = rating(card);
  const state = Object.fromEntries(cards.map((card) => [card.dataset.subject, [rating(card), note(card).value]]));
  try {
    localStorage.setItem(store, JSON.stringify(state));
  } catch {} // no place: then only what is exported stays
}

function choose(card) {
  current.classList.remove("current");
  current = card;
  current.classList.add("current");
}

function show(step) {
  const order = inOrder();
  choose(order[Math.min(Math.max(order.indexOf(current) + step, 0), order.length - 1)]);
  current.scrollIntoView({ block: "start" });
}

function enlarge() {
  document.body.classList.toggle("large");
  show(0);
}

function exportTable() {
  exported = table();
  const link = document.createElement("a");
  link.href = `data:text/tab-separated-values;charset=utf-8,${encodeURIComponent(exported)}`;
  link.download = "ratings.tsv";
  link.click();
}

function pressed(event) {
  const writing = event.target.matches("input[type=text]");
  if (writing && ["Enter", "Escape"].includes(event.key)) event.target.blur();
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.startsWith("Arrow") && event.target.matches(".scroll")) return; // a wide table is scrolled
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in RATINGS) {
    rate(current, RATINGS[key]);
    changed();
    if (RATINGS[key]) show(1);
  } else if (key === "ArrowRight") show(1);
  else if (key === "ArrowLeft") show(-1);
  else if (key === "n") note(current).focus();
  else if (key === "b") enlarge();
  else if (key === "e") exportTable();
  else return;
  event.preventDefault(); // arrows would change a radio button, n would be written into the note
}

try {
  const state = JSON.parse(localStorage.getItem(store) ?? "{}");
  for (const card of cards) if (state[card.dataset.subject]) rate(card, ...state[card.dataset.subject]);
} catch {} // no place, or not ours
for (const card of cards) {
  card.addEventListener("input", changed);
  for (const touched of ["pointerdown", "focusin"]) card.addEventListener(touched, () => choose(card));
  card.querySelector("button")?.addEventListener("click", enlarge);
}
document.querySelector("#export").addEventListener("click", exportTable);
document.querySelector("#large")?.addEventListener("click", enlarge);
document.addEventListener("keydown", pressed);
window.addEventListener("beforeunload", (event) => {
  if (table() !== exported) event.preventDefault();
});
if (cards.length) {
  changed();
  choose(current);
}
