"use strict";
// Sorting by a click, what the pointer reads, and one run followed through every chart.

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === "none" ? head.dataset.first || "descending" : now === "ascending" ? "descending" : "ascending";
      const sign = next === "ascending" ? 1 : -1;
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const key = (row) => row.cells[column].dataset.sort;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");  // no value: last, whichever way
        const difference = Number(x) - Number(y);
        return sign * (Number.isNaN(difference) ? x.localeCompare(y) : difference);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

const tip = document.getElementById("tip");

function say(text, event) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(event.pageX + 14, room))}px`;
  tip.style.top = `${event.pageY - tip.offsetHeight - 12}px`;
}

function follow(run) {
  document.body.classList.toggle("following", Boolean(run));
  for (const each of document.querySelectorAll(".run")) each.classList.toggle("followed", each.dataset.run === run);
}

// The vertex nearest to the pointer in a chart of curves: its run, and the values there.
function nearest(chart, event) {
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
  let best = { distance: 28 ** 2 };
  for (const line of chart.querySelectorAll(".run polyline")) {
    for (const { x, y } of line.points) {
      const distance = (x - point.x) ** 2 + (y - point.y) ** 2;
      if (distance < best.distance) best = { distance, x, y, run: line.parentNode.dataset.run };
    }
  }
  if (!best.run) return null;
  const read = (value, axis) => {
    const [low, high, start, end] = chart.dataset[axis].split(" ").map(Number);
    return low + (value - start) / (end - start) * (high - low);
  };
  return { run: best.run, text: `${best.run}\nstep ${Math.round(read(best.x, "x"))}: ${read(best.y, "y").toPrecision(3)}` };
}

let pinned = null;  // a run chosen in the legend stays followed

document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest("svg.curves");
  if (chart) {
    const found = nearest(chart, event);
    follow(found ? found.run : pinned);
    say(found && found.text, event);
    return;
  }
  const told = event.target.closest("[data-tip]");
  const named = event.target.closest("button[data-run]");
  follow(named ? named.dataset.run : pinned);
  say(told && told.dataset.tip, event);
});

document.addEventListener("click", (event) => {
  const named = event.target.closest("button[data-run]");
  if (named) {
    pinned = pinned === named.dataset.run ? null : named.dataset.run;
    follow(pinned);
  }
  const told = event.target.closest("[data-tip]");
  if (told) say(told.dataset.tip, event);
});
