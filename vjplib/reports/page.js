"use strict";
const table = document.getElementById("rules");
const groups = Array.from(table.tBodies);
const words = document.getElementById("text");
const level = document.getElementById("level");

function show(group, claim) {
  const details = group.rows[1];
  const same = !details.hidden && (details.dataset.claim || "") === claim;
  details.hidden = same;
  details.dataset.claim = claim;
  for (const section of details.querySelectorAll("section")) {
    section.hidden = claim !== "" && section.dataset.claim !== claim;
  }
  group.rows[0].querySelector("th button").setAttribute("aria-expanded", String(!same));
}

function filter() {
  const wanted = words.value.trim().toLowerCase();
  let count = 0;
  for (const group of groups) {
    const fits = group.textContent.toLowerCase().includes(wanted) &&
      (level.value === "" || group.dataset.levels.split(" ").includes(level.value));
    group.hidden = !fits;
    count += fits;
    for (const item of group.querySelectorAll("li[data-level]")) {
      item.hidden = level.value !== "" && item.dataset.level !== level.value;
    }
  }
  document.getElementById("count").textContent = `${count} of ${groups.length} rules`;
}

function sort(heading) {
  const column = heading.cellIndex;
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (group) => group.rows[0].cells[column].dataset.sort;
  const compare = heading.dataset.key === "rule"
    ? (a, b) => key(a).localeCompare(key(b))
    : (a, b) => Number(key(a)) - Number(key(b));
  const sorted = groups.slice().sort((a, b) => descending ? compare(b, a) : compare(a, b));
  table.append(...sorted);
}

table.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button === null) return;
  const heading = button.closest("thead th");
  if (heading !== null) sort(heading);
  else show(button.closest("tbody"), button.dataset.claim || "");
});
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("filter").addEventListener("submit", (event) => event.preventDefault());
filter();
