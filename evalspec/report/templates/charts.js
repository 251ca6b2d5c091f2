// Charts: drawn as SVG, their panels as wide as the page allows.
(() => {
  const { style, figures } = JSON.parse(document.getElementById('charts').textContent);
  const narrowest = 205, gap = 18, axis = 58;
  const fitted = (figure, width) => {
    const spec = structuredClone(figure.spec);
    if (figure.panels === 1) {
      spec.width = 'container';
      spec.autosize = { type: 'fit-x', contains: 'padding' };
      return spec;
    }
    // Rows of equal length where the number of panels allows it.
    const most = Math.max(1, Math.min(figure.panels, Math.floor((width - axis + gap) / (narrowest + gap))));
    let columns = most;
    while (columns > 1 && figure.panels % columns) columns -= 1;
    if (columns === 1) columns = most;
    spec.columns = columns;
    spec.spec.width = Math.min(420, Math.floor((width - axis - gap * (columns - 1)) / columns) - 2);
    return spec;
  };
  const options = { renderer: 'svg', ast: true, config: style, actions: { export: true, source: false, compiled: false, editor: false } };
  const draw = async () => {
    for (const element of document.querySelectorAll('[data-chart]')) {
      const figure = figures[element.dataset.chart];
      const { view } = await vegaEmbed(element, fitted(figure, element.clientWidth), { ...options, downloadFileName: element.dataset.chart });
      element.dataset.drawn = 'yes';
      figure.view?.finalize();
      figure.view = view;
    }
    document.body.dataset.drawn = 'yes';
  };
  let width = window.innerWidth, waiting;
  draw();
  window.addEventListener('resize', () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 200);
  });
})();
