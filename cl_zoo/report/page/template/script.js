"use strict";
document.documentElement.classList.add("js");

// What does not need scrolling is no stop for the keyboard.
const reach = () => {
  for (const one of document.querySelectorAll(".scroll")) {
    if (one.scrollWidth > one.clientWidth + 1) one.setAttribute("tabindex", "0");
    else one.removeAttribute("tabindex");
  }
};
addEventListener("resize", reach);

for (const article of document.querySelectorAll(".comparison")) {
  const live = article.querySelector(".live");
  const say = (text) => { live.textContent = text; };

  // One table at a time.
  const views = [...article.querySelectorAll(".view")];
  const choices = [...article.querySelectorAll(".views button")];
  const show = (which) => {
    for (const view of views) view.hidden = view.dataset.view !== which;
    for (const one of choices) one.setAttribute("aria-pressed", String(one.dataset.view === which));
    reach();
  };
  for (const one of choices) one.addEventListener("click", () => { show(one.dataset.view); say(one.textContent + " is shown"); });
  show("0");

  // Sorting: numbers first from the highest, names from A; what has no value stays last.
  for (const table of article.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => {
          const text = row.cells[column].dataset.v;
          const number = text.trim() === "" ? NaN : Number(text);
          return { row, text, number };
        });
        const known = rows.filter((one) => one.text !== "");
        const numbers = known.length > 0 && known.every((one) => !Number.isNaN(one.number));
        const now = head.getAttribute("aria-sort");
        const first = numbers ? "descending" : "ascending";
        const other = numbers ? "ascending" : "descending";
        const way = now === first ? other : first;
        const sign = way === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          if ((a.text === "") !== (b.text === "")) return a.text === "" ? 1 : -1;
          return sign * (numbers ? a.number - b.number : a.text.localeCompare(b.text));
        });
        for (const one of rows) body.append(one.row);
        for (const one of heads) if (one.hasAttribute("aria-sort")) one.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", way);
        say("sorted by " + button.textContent + ", " + way);
      });
    });
  }

  // A filter over names and notes, for everything that belongs to a method.
  const labelled = [...article.querySelectorAll("[data-label]")];
  const words = new Map();
  for (const row of views[0].querySelectorAll("tbody tr")) words.set(row.dataset.label, row.dataset.label + " " + row.lastElementChild.textContent);
  article.querySelector(".filter input").addEventListener("input", (event) => {
    const asked = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (label) => asked.every((word) => (words.get(label) || label).toLowerCase().includes(word));
    for (const one of labelled) one.classList.toggle("gone", !fits(one.dataset.label));
    const left = [...words.keys()].filter(fits).length;
    say(left + " of " + words.size + " methods");
  });

  // Bringing out methods in the charts.
  const keys = [...article.querySelectorAll(".keys button")];
  const bring = (labels) => {
    for (const chart of article.querySelectorAll(".chart")) {
      const any = labels.size > 0 && [...chart.querySelectorAll(".series")].some((one) => labels.has(one.dataset.label));
      chart.classList.toggle("quiet", any);
      for (const one of chart.querySelectorAll(".series")) one.classList.toggle("loud", labels.has(one.dataset.label));
    }
  };
  const pressed = () => new Set(keys.filter((one) => one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.label));
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", String(key.getAttribute("aria-pressed") !== "true"));
      bring(pressed());
    });
    key.addEventListener("mouseenter", () => bring(new Set([...pressed(), key.dataset.label])));
    key.addEventListener("mouseleave", () => bring(pressed()));
  }
}
