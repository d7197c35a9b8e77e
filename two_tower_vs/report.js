'use strict'
// The page is complete without this: it only narrows the list of queries.
const form = document.querySelector('.filter'), rows = [...document.querySelectorAll('.rows tbody tr')]
if (form) {
  const said = form.querySelector('output')
  const show = () => {
    const find = form.elements.find.value.toLowerCase(), kind = form.elements.kind.value
    for (const r of rows) r.hidden = !(r.textContent.toLowerCase().includes(find) && (!kind || r.dataset.kind.split(' ').includes(kind)))
    const n = rows.filter(r => !r.hidden).length
    said.textContent = `${n} of ${rows.length} shown`
  }
  form.addEventListener('input', show)
  form.addEventListener('submit', e => e.preventDefault())
  form.hidden = false
  show()
}
