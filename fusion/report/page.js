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

  const budgets = document.getElementById("budgets");
  if (budgets) {
    const show = (button) => {
      press(button);
      const wanted = button.dataset.budget;
      for (const row of document.querySelectorAll("tr[data-budget]")) {
        row.hidden = wanted !== "all" && row.dataset.budget !== wanted;
      }
    };
    for (const button of budgets.querySelectorAll("button")) button.addEventListener("click", () => show(button));
    show(budgets.querySelector("button"));
  }

  for (const sample of document.querySelectorAll(".sample")) {
    for (const button of sample.querySelectorAll("button[data-variant]")) {
      button.addEventListener("click", () => {
        press(button);
        for (const variant of sample.querySelectorAll(".variant")) {
          variant.hidden = variant.dataset.variant !== button.dataset.variant;
        }
      });
    }
  }
})();
