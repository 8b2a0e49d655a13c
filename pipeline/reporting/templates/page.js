"use strict";
// Makes the headings of tables of the class "sortable" buttons; without it they are plain tables.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];

  const compare = (a, b, direction) => {
    if (a === "" || b === "") return (a === "") - (b === "");  // what is missing comes last
    const numeric = !isNaN(a) && !isNaN(b);
    return direction * (numeric ? a - b : a.localeCompare(b, undefined, {numeric: true}));
  };

  const sort = (head, column) => {
    const sorted = head.getAttribute("aria-sort");
    const order = sorted === "ascending" ? "descending"
      : sorted === "descending" ? "ascending" : head.dataset.first;
    const direction = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.order, row]);
    rows.sort(([a], [b]) => compare(a, b, direction));
    body.append(...rows.map(([, row]) => row));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.querySelector(".label").classList.add("arrow");
    button.addEventListener("click", () => sort(head, column));
  });
}

// What is folded is printed, too.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
});
