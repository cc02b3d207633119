// Long tables: a field that filters rows, headings that sort. Numbers sort as numbers, and what is unknown stays last.
const DASH = "–";
const FIGURE = /^[≈~<>≤≥$€+]?\s*([-−]?[\d,]*\.?\d+)\s*\D{0,12}$/;

function figure(cell) {
  const found = cell.textContent.trim().match(FIGURE);
  return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : NaN;
}

function unknown(cell) {
  return ["", DASH].includes(cell.textContent.trim());
}

function byFigure(sign) {
  return (a, b) => Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0;
}

function byWords(sign) {
  return (a, b) => (a === "") - (b === "") || sign * a.localeCompare(b, undefined, { numeric: true });
}

const order = window.DataTable.ext.type.order;
Object.assign(order, { "figure-asc": byFigure(1), "figure-desc": byFigure(-1), "words-asc": byWords(1), "words-desc": byWords(-1) });
Object.assign(order, { "figure-pre": (value) => (value === "" ? NaN : Number(value)), "words-pre": (value) => value });

for (const table of document.querySelectorAll("table.long")) {
  const rows = [...table.tBodies[0].rows];
  const columnDefs = [...table.tHead.rows[0].cells].map((_, column) => {
    const cells = rows.map((row) => row.cells[column]);
    const known = cells.filter((cell) => !unknown(cell));
    const figures = known.length > 0 && known.every((cell) => !Number.isNaN(figure(cell)));
    for (const cell of cells) {
      cell.dataset.order = unknown(cell) ? "" : figures ? figure(cell) : cell.textContent.trim();
    }
    return { targets: column, type: figures ? "figure" : "words", orderSequence: figures ? ["desc", "asc", ""] : ["asc", "desc", ""] };
  });
  const shown = new window.DataTable(table, {
    autoWidth: false,
    columnDefs,
    language: {
      info: "_TOTAL_ rows",
      infoEmpty: "0 rows",
      infoFiltered: "of _MAX_",
      search: "Filter rows",
      zeroRecords: "No row says that.",
    },
    layout: { topStart: "search", topEnd: "info", bottomStart: null, bottomEnd: null },
    order: [],
    orderClasses: false,
    paging: false,
  });
  // Only what is longer than a screen or two scrolls in a box of its own height, under its headings.
  shown.table().container().classList.toggle("tall", rows.length > 40);
}
