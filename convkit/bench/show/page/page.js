// The page of `convkit report`: theme, sorting, filters. Without it the page is complete, only not interactive.
"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("script");

  // -- theme: the system's, until another is chosen ---------------------------------------------------
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (value) => {
    try { // a page that was opened as a file may have no storage
      if (value) localStorage.setItem("convkit-theme", value);
      return localStorage.getItem("convkit-theme");
    } catch { return null; }
  };
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", String(dark()));
  const chosen = remembered();
  if (chosen === "dark" || chosen === "light") root.dataset.theme = chosen;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remembered(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();

  // -- sorting: by a header's button; what has no figure stays last ------------------------------------
  const words = new Intl.Collator("en", { numeric: true });
  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim();
    return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
  };
  const sort = (table, column, ascending, numeric) => {
    const sign = ascending ? 1 : -1;
    const keyed = [...table.tBodies[0].rows].map((row) => [key(row, column, numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : words.compare(a, b));
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };
  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const control = document.createElement("button");
      control.type = "button";
      control.textContent = head.textContent;
      control.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(table, column, ascending, head.classList.contains("number"));
      });
      head.dataset.title = head.textContent; // on paper: a header that is repeated shows no button
      head.replaceChildren(control);
    });
  }

  // -- filters: rows by what they are, contenders by their library; convkit's own stay beside them -----
  const form = document.getElementById("filters");
  const lines = all("table.overview tbody tr");
  const named = ["layer", "direction", "batch", "grade", "verdict"];
  const own = all(".legend li").find((item) => item.textContent === "convkit")?.dataset.l;
  const filter = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const shown = new Set();
    for (const line of lines) {
      const fits = named.every((name) => !wanted[name] || line.dataset[name] === wanted[name]);
      const takesPart = !wanted.library || line.dataset.libraries.split(" ").includes(wanted.library);
      if (fits && takesPart) shown.add(line.dataset.r);
    }
    for (const item of all("[data-r], [data-l]")) {
      const { r, l } = item.dataset;
      const foreign = wanted.library && l !== undefined && l !== wanted.library && l !== own;
      item.classList.toggle("off", (r !== undefined && !shown.has(r)) || Boolean(foreign));
    }
    count(shown);
  };
  const count = (shown) => {
    document.getElementById("shown").textContent = `${shown.size} of ${lines.length} ${lines.length === 1 ? "row" : "rows"}`;
    for (const tiles of all(".tiles")) {
      const mine = lines.filter((line) => shown.has(line.dataset.r) && line.closest(".results").id === tiles.dataset.results);
      for (const number of all("[data-count]", tiles)) {
        const word = number.dataset.count;
        const open = (line) => !["win", "tie", "loss"].includes(line.dataset.verdict);
        const fits = word === "no verdict" ? open : (line) => line.dataset.verdict === word;
        number.textContent = mine.filter(fits).length;
      }
    }
  };
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  filter(); // a browser may have kept the choice over a reload

  // -- details -----------------------------------------------------------------------------------------
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) {
      target.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
  for (const control of all(".open-all")) {
    control.addEventListener("click", () => {
      const rows = all("details.row", control.closest(".results"));
      const closed = rows.some((row) => !row.open);
      for (const row of rows) row.open = closed;
      control.textContent = closed ? "Close all rows" : "Open all rows";
    });
  }
  let before = [];
  addEventListener("beforeprint", () => {
    before = all("details:not([open], .same)");
    for (const item of before) item.open = true;
  });
  addEventListener("afterprint", () => {
    for (const item of before) item.open = false;
  });

  // -- the result file -----------------------------------------------------------------------------------
  for (const control of all(".save")) {
    control.addEventListener("click", () => {
      const text = document.getElementById(control.dataset.for).textContent;
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      link.download = "results.json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }
})();
