"use strict";
(() => {
  const press = (button) => {
    for (const other of button.parentElement.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  };

  // Sorting stays within a section of the table: clean data, sensor subsets, faults.
  const valueOf = (row, column, isText) => {
    const cell = row.cells[column];
    if (!cell) return isText ? "" : -Infinity;
    if (isText) return cell.textContent.trim().toLowerCase();
    const value = parseFloat(cell.dataset.value ?? cell.textContent);
    return Number.isNaN(value) ? -Infinity : value;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (!heading.textContent.trim()) return;
      heading.tabIndex = 0;
      const sort = () => {
        const isText = heading.dataset.type === "text";
        const descending = heading.getAttribute("aria-sort") !== "descending" && !isText
          || heading.getAttribute("aria-sort") === "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        for (const body of table.tBodies) {
          const rows = [...body.rows].sort((one, two) => {
            const a = valueOf(one, column, isText), b = valueOf(two, column, isText);
            return (a < b ? -1 : a > b ? 1 : 0) * (descending ? -1 : 1);
          });
          body.append(...rows);
        }
      };
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
      });
    });
  }

  // Rows are shown if they fit both the budget that is pressed and every word of the filter. A table whose run was
  // not scored at that budget shows what it has.
  const budgets = document.getElementById("budgets");
  const filter = document.getElementById("filter");
  let wanted = "all", run = "0";
  const show = () => {
    const words = filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const table of document.querySelectorAll("table")) {
      const rows = [...table.querySelectorAll("tr[data-budget]")];
      const any = wanted === "all" || !rows.some((row) => row.dataset.budget === wanted);
      const counts = rows.length && (table.closest(".of-run")?.dataset.run ?? run) === run;
      for (const row of rows) {
        const fits = any || row.dataset.budget === wanted;
        const text = row.dataset.words;
        row.hidden = !fits || (text !== undefined && !words.every((word) => text.includes(word)));
        if (counts && text !== undefined && fits) { all += 1; shown += row.hidden ? 0 : 1; }
      }
    }
    document.getElementById("shown").textContent = words.length ? `${shown} of ${all} rows` : "";
  };
  filter.addEventListener("input", show);
  if (budgets) {
    for (const button of budgets.querySelectorAll("button")) {
      button.addEventListener("click", () => { press(button); wanted = button.dataset.budget; show(); });
    }
    wanted = budgets.querySelector("button").dataset.budget;
    show();
  }

  // One run at a time; a section that has nothing of it is not there.
  const choose = () => {
    const blocks = [...document.querySelectorAll(".of-run")];
    for (const block of blocks) block.hidden = block.dataset.run !== run;
    for (const part of document.querySelectorAll("article.sample, section")) {
      const own = [...part.querySelectorAll(".of-run")];
      const shared = part.querySelector(".drawn:not(.of-run .drawn)");
      part.hidden = own.length > 0 && !shared && own.every((block) => block.hidden);
    }
  };
  const runs = document.getElementById("runs-switch");
  if (runs) {
    for (const button of runs.querySelectorAll("button")) {
      button.addEventListener("click", () => { press(button); run = button.dataset.run; choose(); show(); });
    }
  }
  choose();

  const data = JSON.parse(document.getElementById("data").textContent);
  const save = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  const quoted = (value) => {
    const text = value === null ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = () => {
    const names = Object.keys(data.rows[0]);
    return [names, ...data.rows.map((row) => names.map((name) => row[name]))]
      .map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
  document.getElementById("csv").addEventListener("click", () => save("robustness.csv", "text/csv", csv()));
  document.getElementById("json").addEventListener("click", () => save("robustness.json", "application/json", JSON.stringify(data, null, 1)));

  for (const block of document.querySelectorAll(".sample .of-run")) {
    for (const button of block.querySelectorAll("button[data-variant]")) {
      button.addEventListener("click", () => {
        press(button);
        for (const variant of block.querySelectorAll(".variant")) {
          variant.hidden = variant.dataset.variant !== button.dataset.variant;
        }
      });
    }
  }
})();
