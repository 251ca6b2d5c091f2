// Samples: a filtered list, a page of it at a time, and one sample in full. Text goes in as text, never as markup.
(() => {
  if (!document.getElementById('samples')) return;  // a run that only measures has none
  const data = JSON.parse(document.getElementById('data').textContent);
  const prompts = [];
  for (const [shared, rest] of data.prompts) prompts.push((prompts.at(-1) ?? '').slice(0, shared) + rest);
  const samples = data.samples.map((sample, at) => {
    const [model, task, condition] = data.cells[sample.cell];
    const tail = [sample.repeat, sample.draw].filter(part => part !== undefined);
    const key = [model, task, condition, sample.id, sample.stage ?? '', ...tail].join('|');
    const scores = sample.scores?.map(([metric, value, extracted, lost]) => [...data.metrics[metric], value, extracted ?? sample.output, lost]);
    const stage = sample.stage ?? 'main', lost = scores?.some(score => score[4]);
    const passages = sample.passages === undefined ? null
      : data.retrieved[sample.passages].map(([passage, rank, score, relevant]) => ({ id: data.passages[passage][0], text: data.passages[passage][1], rank, score, relevant }));
    return { ...sample, at, model, task, condition, stage, lost, key, scores, passages };
  });
  const byKey = new Map(samples.map(sample => [sample.key, sample]));
  const controls = document.getElementById('controls').elements;
  const list = document.getElementById('list'), detail = document.getElementById('detail');
  const perPage = 50;
  let matching = [], page = 0, current = null;

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
  };
  const text = value => value === null || value === undefined ? '' : typeof value === 'string' ? value : JSON.stringify(value);
  const verdict = sample => sample.failed ? ['✗', 'mark-failed'] : sample.judged ? ['✓', 'mark-right'] : ['·', 'mark-none'];
  const mark = sample => make('span', { textContent: verdict(sample)[0], className: verdict(sample)[1] });
  const lastLine = prompt => prompt.trimEnd().split('\n').filter(line => line.trim()).slice(-2).join(' ');

  for (const name of ['model', 'task', 'condition', 'stage']) {
    const values = [...new Set(samples.map(sample => sample[name]))];
    controls[name].append(make('option', { value: '', textContent: 'all' }), ...values.map(value => make('option', { value, textContent: value })));
    if (values.length < 2) controls[name].parentElement.hidden = true;
  }
  controls.lost.parentElement.hidden = !samples.some(sample => sample.lost);

  const filter = () => {
    const { model, task, condition, stage, failures, lost } = controls;
    const wanted = controls.text.value.toLowerCase();
    matching = samples.filter(sample =>
      (!model.value || sample.model === model.value) && (!task.value || sample.task === task.value) &&
      (!condition.value || sample.condition === condition.value) && (!failures.checked || sample.failed) &&
      (!stage.value || sample.stage === stage.value) && (!lost.checked || sample.lost) &&
      (!wanted || [sample.id, text(sample.output), text(sample.target), text(sample.error), prompts[sample.prompt]].some(part => part.toLowerCase().includes(wanted))));
    document.getElementById('matching').value = `${matching.length.toLocaleString('en')} of ${samples.length.toLocaleString('en')}`;
    page = 0;
    if (!matching.includes(current)) show(matching[0] ?? null, false); else follow();
  };

  const drawList = () => {
    const pages = Math.max(1, Math.ceil(matching.length / perPage));
    list.replaceChildren(...matching.slice(page * perPage, (page + 1) * perPage).map(sample => {
      const item = make('li', {}, mark(sample), make('div', { className: 'what' },
        make('div', { className: 'what', textContent: lastLine(prompts[sample.prompt]) }),
        make('div', { className: 'where', textContent: `${sample.model} · ${sample.condition} · ${sample.stage !== 'main' ? sample.stage + ' · ' : ''}${text(sample.output).trim() || (sample.error ? 'error' : '')}` })));
      if (sample === current) item.setAttribute('aria-current', 'true');
      item.addEventListener('click', () => show(sample));
      return item;
    }));
    document.getElementById('page').textContent = `page ${page + 1} of ${pages}`;
    document.getElementById('earlier').disabled = page === 0;
    document.getElementById('later').disabled = page >= pages - 1;
  };
  const follow = () => {
    const at = matching.indexOf(current);
    if (at >= 0) page = Math.floor(at / perPage);
    drawList();
    const item = list.querySelector('[aria-current]');
    if (item) list.scrollTop += Math.min(0, item.offsetTop - list.offsetTop - list.scrollTop) + Math.max(0, item.offsetTop + item.offsetHeight - list.offsetTop - list.scrollTop - list.clientHeight);
  };

  // The prompt with its own passages marked; what stands before them is shots, set back a little.
  const marked = sample => {
    const prompt = prompts[sample.prompt];
    const found = [];
    for (const { text: passage, relevant } of sample.passages ?? []) {
      const start = passage ? prompt.lastIndexOf(passage) : -1;
      if (start >= 0) found.push([start, start + passage.length, relevant]);
    }
    found.sort((a, b) => a[0] - b[0]);
    const node = make('pre', { className: 'prompt' });
    let at = 0;
    for (const [start, end, relevant] of found) {
      if (start < at) continue;
      const between = prompt.slice(at, start);
      node.append(at === 0 && sample.shots ? make('span', { className: 'before', textContent: between }) : between);
      node.append(make(relevant ? 'mark' : 'span', { className: 'passage', textContent: prompt.slice(start, end) }));
      at = end;
    }
    node.append(prompt.slice(at));
    return node;
  };
  const table = (heads, rows, className = '') => make('div', { className: 'scroll' }, make('table', { className },
    make('thead', {}, make('tr', {}, ...heads.map(head => make('th', { textContent: head })))),
    make('tbody', {}, ...rows.map(({ cells, kind }) => make('tr', { className: kind ?? '' }, ...cells.map(cell => make('td', { textContent: text(cell) })))))));
  const section = (title, ...nodes) => [make('h4', { textContent: title }), ...nodes];

  // What a filter took from the output is shown only where it is not the output itself.
  const scores = sample => {
    const taken = sample.scores.some(score => score[3] !== undefined && text(score[3]).trim() !== text(sample.output).trim());
    const named = (metric, filter) => filter && !['none', 'default'].includes(filter) ? `${metric} (${filter})` : metric;
    return table(['metric', 'value', ...(taken ? ['extracted'] : [])], sample.scores.map(([metric, filter, value, extracted, lost]) => ({
      cells: [named(metric, filter), value, ...(taken ? [lost ? `${text(extracted)} (no answer found)` : extracted] : [])] })));
  };
  const choices = sample => {
    const sums = (sample.logprobs ?? []).map(value => [value].flat(2).reduce((sum, part) => sum + Number(part), 0));
    const alone = sums.splice(sample.choices.length);  // of each choice without its prompt, where a metric compares with it
    const likeliest = sums.indexOf(Math.max(...sums));
    const number = value => typeof value === 'number' ? value.toFixed(3) : '–';
    return table(['choice', 'log-probability', ...(alone.length ? ['without the prompt'] : []), ''], sample.choices.map((choice, at) => ({
      cells: [choice, number(sums[at]), ...(alone.length ? [number(alone[at])] : []),
        [at === likeliest ? 'likeliest' : '', text(choice) === sample.target || String(at) === sample.target ? 'target' : ''].filter(Boolean).join(', ')] })));
  };
  const elsewhere = sample => {
    const same = samples.filter(other => other.id === sample.id && other.task === sample.task && other.stage === sample.stage && other.repeat === sample.repeat && other.draw === sample.draw);
    if (same.length < 2) return [];
    const models = [...new Set(same.map(other => other.model))];
    const conditions = [...new Set(samples.filter(other => other.task === sample.task).map(other => other.condition))].filter(name => same.some(other => other.condition === name));
    const cell = (model, condition) => {
      const other = same.find(found => found.model === model && found.condition === condition);
      if (!other) return make('td');
      const button = make('button', { type: 'button', title: text(other.output) }, mark(other));
      if (other === sample) button.setAttribute('aria-current', 'true');
      button.addEventListener('click', () => show(other));
      return make('td', {}, button);
    };
    const grid = make('table', {}, make('thead', {}, make('tr', {}, make('th'), ...models.map(model => make('th', { textContent: model })))),
      make('tbody', {}, ...conditions.map(condition => make('tr', {}, make('th', { textContent: condition }), ...models.map(model => cell(model, condition))))));
    return [make('details', { className: 'same', open: elsewhereOpen, ontoggle() { elsewhereOpen = this.open; } }, make('summary', { textContent: `The same question elsewhere (${same.length})` }), make('div', { className: 'elsewhere scroll' }, grid))];
  };
  let elsewhereOpen = true;

  const drawDetail = () => {
    if (!current) { detail.replaceChildren(make('p', { className: 'note', textContent: 'No sample matches.' })); return; }
    const sample = current;
    const facts = [sample.tokens !== undefined ? `${sample.tokens} prompt tokens` : null, sample.truncated ? `${sample.truncated} truncated at the left` : null,
      sample.finish ? `ended by ${sample.finish}` : null, sample.repeat !== undefined ? `repeat ${sample.repeat}` : null, sample.draw !== undefined ? `draw ${sample.draw}` : null,
      sample.stage !== 'main' ? `stage ${sample.stage}` : null, sample.cached ? 'reused' : null, sample.shots ? `shots ${[].concat(sample.shots).join(', ')}` : null];
    detail.replaceChildren(
      make('h3', {}, mark(sample), ` ${sample.model} · ${sample.condition} · `, make('a', { textContent: sample.id, href: `#sample=${encodeURIComponent(sample.key)}`, title: 'link to this sample' })),
      make('div', { className: 'note', textContent: facts.filter(Boolean).join(' · ') }),
      ...(sample.error ? section('error', make('pre', { textContent: sample.error })) : []),
      make('div', { className: 'outputs' },
        make('div', {}, ...section('target', make('pre', { className: 'target', textContent: text(sample.target) }))),
        make('div', {}, ...section('output', make('pre', { className: 'output', textContent: text(sample.output) })))),
      ...(sample.scores ? section('scores', scores(sample)) : []),
      ...(sample.choices ? section('choices', choices(sample)) : []),
      ...section('prompt', marked(sample)),
      ...(sample.passages ? section('passages', table(['rank', 'id', 'score', 'passage'], sample.passages.map(({ rank, id, score, relevant, text: passage }) => ({ cells: [rank, id, score, (relevant ? '★ ' : '') + (passage ?? (relevant ? 'gold' : ''))], kind: relevant ? 'gold' : '' })), 'passages')) : []),
      ...elsewhere(sample));
    const prompt = detail.querySelector('.prompt');
    prompt.scrollTop = prompt.scrollHeight;  // the question stands last
  };
  const show = (sample, link = true) => {
    current = sample;
    if (sample && link) history.replaceState(null, '', `#sample=${encodeURIComponent(sample.key)}`);
    follow();
    drawDetail();
  };
  const move = step => {
    const at = matching.indexOf(current) + step;
    if (at >= 0 && at < matching.length) show(matching[at]);
  };
  const turn = step => { page += step; drawList(); list.scrollTop = 0; };

  document.getElementById('controls').addEventListener('input', filter);
  document.getElementById('controls').addEventListener('submit', event => event.preventDefault());
  document.getElementById('earlier').addEventListener('click', () => turn(-1));
  document.getElementById('later').addEventListener('click', () => turn(1));
  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches('input[type=search], select, textarea')) { if (event.key === 'Escape') event.target.blur(); return; }
    if (event.key === 'j') move(1);
    else if (event.key === 'k') move(-1);
    else if (event.key === 'f') { controls.failures.checked = !controls.failures.checked; filter(); }
    else if (event.key === '/') { event.preventDefault(); controls.text.focus(); }
  });
  const arrive = () => {
    if (!location.hash.startsWith('#sample=')) return;
    const sample = byKey.get(decodeURIComponent(location.hash.slice(8)));
    if (!sample) return;
    show(sample, false);
    document.getElementById('samples').scrollIntoView();
  };
  window.addEventListener('hashchange', arrive);
  filter();
  arrive();
})();
