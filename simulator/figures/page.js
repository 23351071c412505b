// Draws every figure of the page and recolours it when the reader's light or dark preference changes.
(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  function colours() {
    return dark.matches
      ? { "font.color": "#e3e6ea", paper_bgcolor: "#14171b" }
      : { "font.color": "#24292f", paper_bgcolor: "#ffffff" };
  }
  // Side by side the entries need more width than there is: one below the other at the foot of a taller figure.
  function makeRoomForLegend(figure, div) {
    var entries = figure.data.filter(function (trace) { return trace.name && trace.showlegend !== false; }).length;
    if (!figure.layout.legend || entries < 2) return;
    var room = 21 * entries + 12;
    figure.layout.legend.yref = "container";
    figure.layout.legend.y = 0;
    figure.layout.legend.yanchor = "bottom";
    figure.layout.margin.b = room + 46;
    figure.layout.height += Math.max(0, room - 70);
    div.style.height = figure.layout.height + "px";
  }
  var plots = [];
  document.querySelectorAll("script[data-plot]").forEach(function (holder) {
    var figure = JSON.parse(holder.textContent);
    var div = document.getElementById(holder.dataset.plot);
    var wanted = colours();
    figure.layout.font.color = wanted["font.color"];
    figure.layout.paper_bgcolor = wanted.paper_bgcolor;
    var narrow = div.clientWidth < 640;
    if (narrow) makeRoomForLegend(figure, div);
    // A finger that scrolls past must not zoom.
    if (window.matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
    Plotly.newPlot(div, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow ? false : "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    });
    plots.push(div);
  });
  dark.addEventListener("change", function () {
    plots.forEach(function (div) { Plotly.relayout(div, colours()); });
  });
})();
