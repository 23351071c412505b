// Draws every figure of the page and recolours it when the reader's light or dark preference changes.
(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function colours() {
    return dark.matches
      ? { "font.color": "#e3e6ea", paper_bgcolor: "#14171b" }
      : { "font.color": "#24292f", paper_bgcolor: "#ffffff" };
  }
  var plots = [];
  document.querySelectorAll("script[data-plot]").forEach(function (holder) {
    var figure = JSON.parse(holder.textContent);
    var div = document.getElementById(holder.dataset.plot);
    var wanted = colours();
    figure.layout.font.color = wanted["font.color"];
    figure.layout.paper_bgcolor = wanted.paper_bgcolor;
    Plotly.newPlot(div, figure.data, figure.layout, { responsive: true, displaylogo: false });
    plots.push(div);
  });
  dark.addEventListener("change", function () {
    plots.forEach(function (div) { Plotly.relayout(div, colours()); });
  });
})();
