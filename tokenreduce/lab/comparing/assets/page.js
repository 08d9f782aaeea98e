"use strict";
(function () {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();

  function drawAll() {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line") };
    read("figures").forEach((figure, number) => {
      const layout = Object.assign({}, figure.layout, {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink") },
        hoverlabel: { bgcolor: colour("--soft"), font: { color: colour("--ink") } },
      });
      layout.xaxis = Object.assign({}, axis, figure.layout.xaxis);
      layout.yaxis = Object.assign({}, axis, figure.layout.yaxis);
      Plotly.newPlot("plot" + number, figure.data, layout, { displayModeBar: false, responsive: true });
    });
  }

  function sortBy(table, column, button) {
    const header = button.closest("th");
    const up = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.value;
    const rows = Array.from(body.rows).sort((a, b) => {
      const [first, second] = [key(a), key(b)];
      if (first === "" || second === "") return (first === "") - (second === "");  // what is unknown comes last
      const numbers = !isNaN(first) && !isNaN(second);
      const order = numbers ? first - second : first.localeCompare(second);
      return up ? order : -order;
    });
    body.append(...rows);
  }

  function choose() {
    const form = document.getElementById("chooser");
    if (!form) return;
    const [most, cost, answer] = [form.elements.most, form.elements.cost, form.elements.answer];
    const rows = read("data");
    const tell = () => {
      const fit = rows.filter((row) => row[cost.value] !== null && row[cost.value] <= most.value / 100 + 0.005);
      const best = fit.sort((a, b) => a.loss - b.loss)[0];
      answer.textContent = best ? best.name + ": " + best.says : "Nothing that was measured needs so little.";
    };
    form.addEventListener("input", tell);
    form.addEventListener("submit", (event) => event.preventDefault());
    tell();
  }

  document.querySelectorAll("table.sortable").forEach((table) => {
    table.querySelectorAll("thead button").forEach((button, column) => {
      button.addEventListener("click", () => sortBy(table, column, button));
    });
  });
  choose();
  drawAll();
  document.documentElement.dataset.ready = "yes";
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  if (scheme.addEventListener) scheme.addEventListener("change", drawAll);
})();
