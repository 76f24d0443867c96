"use strict";
// Tables are sorted by the button in a column's header: numbers as numbers, what is missing last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

function sortBy(header) {
  const rows = header.closest("table").tBodies[0];
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const texts = [...rows.rows].map((row) => row.cells[header.cellIndex].textContent.trim());
  const known = texts.filter((text) => text && text !== "n/a");
  const numeric = known.every((text) => !Number.isNaN(number(text)));
  const sign = direction === "ascending" ? 1 : -1;
  const keyed = [...rows.rows].map((row, index) => ({ row, text: texts[index] }));
  keyed.sort((a, b) => {
    const missing = isMissing(a.text) - isMissing(b.text);
    if (missing || isMissing(a.text)) return missing;
    const order = numeric ? number(a.text) - number(b.text) : a.text.localeCompare(b.text, "en", { numeric: true });
    return sign * order;
  });
  rows.append(...keyed.map(({ row }) => row));
}

function isMissing(text) {
  return text === "" || text === "n/a";
}

function number(text) {
  return Number.parseFloat(text.replace(/^< /, ""));
}
