// The scoreboard's filters, with DataTables. Without this script the page shows the whole table.
document.addEventListener("DOMContentLoaded", function () {
  const form = document.getElementById("filters"), names = ["chapter", "whose", "verdict", "reason", "setting"];
  if (!form || typeof DataTable === "undefined") return;
  const board = new DataTable("#board", { paging: false, searching: true, info: false, order: [], autoWidth: false, layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null } });
  const told = form.querySelector("output");

  function show() {
    const wanted = new URLSearchParams();
    for (const name of names) {
      const value = form.elements[name].value;
      if (value) wanted.set(name, value);
      board.search.fixed(name, value ? function (text, data, index) { return board.row(index).node().dataset[name] === value; } : null);
    }
    if (form.elements.words.value) wanted.set("words", form.elements.words.value);
    board.search(form.elements.words.value).draw();
    const rows = board.page.info();
    told.textContent = rows.recordsDisplay + " of " + rows.recordsTotal + " claims";
    const address = String(wanted) ? "?" + wanted : location.pathname;
    try { history.replaceState(null, "", address + location.hash); } catch (refused) { /* a file's address stays as it is */ }
  }

  function lead() { // to the claim in the address, which a filter must not hide
    const row = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!row || row.tagName !== "TR") {
      if (!location.hash) return;
      form.reset(); show();
      const hidden = document.getElementById(decodeURIComponent(location.hash.slice(1)));
      if (hidden) hidden.scrollIntoView();
      return;
    }
    row.scrollIntoView();
  }

  for (const [name, value] of new URLSearchParams(location.search)) if (form.elements[name]) form.elements[name].value = value;
  form.hidden = false;
  form.addEventListener("input", show);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(show); });
  window.addEventListener("hashchange", lead);
  show();
  lead();
});
