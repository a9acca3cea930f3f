for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.dataset.order !== "up";
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = up ? "up" : "down";
    const key = row => {
      const text = row.cells[column].textContent, number = parseFloat(text.replace("×", ""));
      return isNaN(number) ? text : number;
    };
    const blank = value => value === "–";
    [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (blank(x) || blank(y)) return blank(x) - blank(y);
      return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
    }).forEach(row => table.tBodies[0].append(row));
  }));
}
