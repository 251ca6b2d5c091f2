// Tables: a click on a head sorts, a filter box keeps the rows that hold every word.
'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener('click', () => {
    const ascending = head.getAttribute('aria-sort') !== 'ascending';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const number = text => text === '' || text === '–' ? NaN : Number(text.replaceAll(',', ''));
    const rows = [...table.tBodies[0].rows];
    const numeric = rows.every(row => key(row) === '' || key(row) === '–' || !Number.isNaN(number(key(row))));
    const compare = numeric
      ? (a, b) => (Number.isNaN(number(key(a))) ? -Infinity : number(key(a))) - (Number.isNaN(number(key(b))) ? -Infinity : number(key(b)))
      : (a, b) => key(a).localeCompare(key(b), 'en', { numeric: true });
    rows.sort((a, b) => (ascending ? 1 : -1) * (compare(a, b) || 0));
    table.tBodies[0].append(...rows);
  }));
}
for (const box of document.querySelectorAll('input.filter')) {
  const table = document.getElementById(box.dataset.table);
  box.addEventListener('input', () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
