"use strict";
// Rating images by mouse or keyboard. Each element with data-subject holds radio buttons (keep, leave out, redo), a
// text field for a note and, in a button, a picture. The page has a button #export, an output #count, perhaps #large.
const cards = [...document.querySelectorAll("[data-subject]")];
const store = `ratings ${document.body.dataset.page}`; // a page of other pictures is another page
const RATINGS = { k: "keep", l: "leave out", r: "redo", u: "" };
let exported = table();
let current = 0;

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
  const quoted = (text) => (text.includes('"') ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = cards
    .map((card) => [card.dataset.subject, rating(card), note(card).value.replace(/\s+/g, " ").trim()])
    .filter(([, value, remark]) => value || remark);
  return [["Subject", "Rating", "Note"], ...rows].map((row) => `${row.map(quoted).join("\t")}\n`).join("");
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

function choose(index) {
  cards[current].classList.remove("current");
  current = Math.min(Math.max(index, 0), cards.length - 1);
  cards[current].classList.add("current");
}

function show(index) {
  choose(index);
  cards[current].scrollIntoView({ block: "start" });
}

function enlarge() {
  document.body.classList.toggle("large");
  show(current);
}

function exportTable() {
  exported = table();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported], { type: "text/tab-separated-values" }));
  link.download = "ratings.tsv";
  link.click();
}

function pressed(event) {
  const writing = event.target.matches("input[type=text]");
  if (writing && ["Enter", "Escape"].includes(event.key)) event.target.blur();
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in RATINGS) {
    rate(cards[current], RATINGS[key]);
    changed();
    if (RATINGS[key]) show(current + 1);
  } else if (key === "ArrowRight") show(current + 1);
  else if (key === "ArrowLeft") show(current - 1);
  else if (key === "n") note(cards[current]).focus();
  else if (key === "b") enlarge();
  else if (key === "e") exportTable();
  else return;
  event.preventDefault(); // arrows would change a radio button, n would be written into the note
}

try {
  const state = JSON.parse(localStorage.getItem(store) ?? "{}");
  for (const card of cards) if (state[card.dataset.subject]) rate(card, ...state[card.dataset.subject]);
} catch {} // no place, or not ours
cards.forEach((card, index) => {
  card.addEventListener("input", changed);
  for (const touched of ["pointerdown", "focusin"]) card.addEventListener(touched, () => choose(index));
  card.querySelector("button")?.addEventListener("click", enlarge);
});
document.querySelector("#export").addEventListener("click", exportTable);
document.querySelector("#large")?.addEventListener("click", enlarge);
document.addEventListener("keydown", pressed);
window.addEventListener("beforeunload", (event) => {
  if (table() !== exported) event.preventDefault();
});
if (cards.length) {
  changed();
  choose(0);
}
