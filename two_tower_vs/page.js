// The page keeps no data of its own: every view is an address (?id=, ?query=, ?like=, &where=, &box=, &less=) or uploaded files, and the API gives the rest.
// Names of pictures may hold anything, so all text goes in as text, never as HTML.
import {PartBox, boxOf, boxText} from './box.js'
import {Labelling} from './label.js'
import {Verdicts, verdictKeys} from './verdicts.js'

const $ = id => document.getElementById(id)
const el = (tag, props = {}, ...kids) => { const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e }
const plural = (n, what) => `${n.toLocaleString('en')} ${what}${n === 1 ? '' : 's'}`
const uploads = new Map()   // number -> file, so that Back works; a reload forgets them
let limitMB = 20, folds = false, under = null, kind = 'all', shown = 0

async function get(url, options) {   // the API's answer; an Error in words otherwise
  let r
  try { r = await fetch(url, options) }
  catch (e) { if (e.name === 'AbortError') throw e; throw new Error('The server does not answer. Is it still running?') }
  const d = await r.json().catch(() => null)
  if (r.status === 401) login()
  if (!r.ok || !d) throw Object.assign(new Error(d?.error?.detail ?? `The server answered with status ${r.status}.`), {status: r.status})
  return d
}

function say(text, bad = false) { $('status').textContent = text; $('status').classList.toggle('bad', bad) }

const image = (id, v, side) => `image/${id}?v=${v}&side=${side}`
const query = (i, v, side) => `query/${i}?v=${v}&side=${side}`
const tile = (src, alt = '') => el('img', {className: 'tile', src, alt, loading: 'lazy', decoding: 'async'})

// ---- one view: nothing, a candidate, an evaluation query, or a file

function view() {
  const p = new URLSearchParams(location.search)
  return {id: p.get('id'), query: p.get('query'), like: p.get('like'), v: p.get('v'), where: p.get('where'),
          box: p.get('box'), less: p.getAll('less'), weight: p.get('weight'),
          upload: history.state?.upload, more: history.state?.more ?? [], lessFiles: history.state?.lessFiles ?? []}
}

function filesOf(now) {   // that were uploaded: to search with, and less like them; null where one is no longer here
  const find = numbers => numbers.map(n => uploads.get(n))
  const files = {images: find(now.upload == null ? now.more : [now.upload, ...now.more]), less: find(now.lessFiles)}
  return [...files.images, ...files.less].every(Boolean) ? files : null
}

function go(to, state = {}) {   // {id, query, like, v}, or {upload} as state; the filter stays
  const p = new URLSearchParams(Object.entries({where: view().where, ...to}).filter(([, v]) => v != null))
  history.pushState(state, '', p.size ? `?${p}` : './')
  show(true)
}

async function show(moved = false) {
  const now = view(), files = filesOf(now), file = uploads.get(now.upload)
  under?.abort(); const mine = under = new AbortController()
  $('where-text').value = now.where ?? ''
  if (now.where) $('filters').querySelector('details').open = true
  if (!files || now.id == null && now.query == null && now.like == null && !file) return empty(!files)
  document.body.classList.add('busy'); say('Searching …')
  asked(now, file)
  try {
    const a = await search(now, files, mine.signal)
    if (mine !== under) return
    hits(a, now); remember(now, file, a); if (moved) $('results').focus({preventScroll: true})
  } catch (e) {
    if (mine !== under || e.name === 'AbortError') return
    $('results').hidden = true; say(e.message, true)
  } finally { if (mine === under) document.body.classList.remove('busy') }
}

function wanted(now) {   // the parameters of a search
  const p = new URLSearchParams()
  for (const name of ['id', 'query', 'like', 'v', 'where', 'box', 'weight']) if (now[name] != null) p.set(name, now[name])
  for (const id of now.less) p.append('less', id)
  p.set('topk', $('topk').value)
  if (folds && $('fold').checked) p.set('fold', 1)
  return p
}

function search(now, files, signal) {
  const all = [...files.images, ...files.less], large = all.find(f => f.size > limitMB * 2 ** 20)
  if (!all.length) return get(`search?${wanted(now)}`, {signal})
  if (large) throw new Error(`${large.name || 'This picture'} is larger than ${limitMB} MB. Choose a smaller one.`)
  const body = new FormData()
  for (const [field, some] of [['image', files.images], ['less', files.less]]) for (const f of some) body.append(field, f, 'picture')
  return get(`search?${wanted(now)}`, {method: 'POST', body, signal})
}

function empty(lost) {
  $('query').hidden = $('results').hidden = true; partBox.give(null); document.body.classList.remove('busy'); drawPast()
  say(lost ? 'That picture is no longer here. Choose it again.' : '')
}

const fileUrls = new Map()   // file -> its address in this page
function urlOf(file) {
  if (!fileUrls.has(file)) fileUrls.set(file, URL.createObjectURL(file))
  return fileUrls.get(file)
}

function asked(now, file) {   // the picture that is searched with
  const v = now.v ?? '', candidate = now.id ?? now.like
  const src = file ? urlOf(file) : `${candidate != null ? `image/${candidate}` : `query/${now.query}`}?side=256${v && '&v=' + v}`
  const name = file ? 'Your picture' : now.like != null ? 'More like this' : candidate != null ? 'A hit of the search before' : 'An evaluation query'
  const more = file?.name ?? (now.like != null ? 'Its own vector is searched with: the tower of the candidates answers.' : '')
  if ($('preview').getAttribute('src') !== src) { $('preview').hidden = false; $('preview').src = src }
  $('preview').alt = file ? name : candidate != null ? 'The candidate that was searched with' : 'The evaluation query'
  $('told').replaceChildren(el('strong', {textContent: name}), el('p', {className: 'soft', textContent: more}))
  share(null); $('query').hidden = false; showPart(now); showMix(now); showLink(now)
}
$('preview').addEventListener('error', () => { $('preview').hidden = true; $('part').hidden = true })   // a format that this browser can't show

// ---- a part of the picture, in a box: it is in the address, as box=

function setAddress(name, value) {   // the same view with another box, say; a step back undoes it
  const p = new URLSearchParams(location.search)
  if (value) p.set(name, value); else p.delete(name)
  history.pushState(history.state, '', p.size ? `?${p}` : './'); show()
}

const partBox = new PartBox($('frame'), $('preview'), {search: b => setAddress('box', boxText(b)), remove: noPart, help: 'part-help'})

function drawPart(box) {   // null: the whole picture
  partBox.give(box)
  $('query').classList.toggle('boxing', Boolean(box))
  $('part-start').hidden = Boolean(box); $('part-end').hidden = $('part-help').hidden = !box
}
function showPart(now) {
  partBox.off = now.like != null   // likeness asks with a vector, not with a picture
  $('part').hidden = partBox.off || $('preview').hidden
  drawPart(partBox.off ? null : boxOf(now.box))
}
function noPart() {
  drawPart(null); $('part-start').focus()
  if (view().box) setAddress('box', null)
}
$('part-start').addEventListener('click', () => { drawPart({x: .25, y: .25, w: .5, h: .5}); partBox.node.focus() })
$('part-end').addEventListener('click', noPart)

// ---- several pictures at once, and less like others: candidates by number in the address, files as state

function setFiles(change) {   // {more, lessFiles}
  history.pushState({...history.state, ...change}, '', location.search || './'); show()
}

function addFiles(files) {
  const numbers = [...files].map(f => { uploads.set(uploads.size, f); return uploads.size - 1 })
  if (numbers.length) setFiles({more: [...view().more, ...numbers]})
}

function lessLike(id, version) {   // a hit: its number belongs to this version
  const now = view(), numbered = now.id ?? now.query ?? now.like ?? now.less[0]
  if (numbered != null && now.v && now.v !== version) return say('The catalogue has changed meanwhile. Search again first.', true)
  const p = new URLSearchParams(location.search)
  p.set('v', version)
  if (!now.less.includes(String(id))) p.append('less', id)
  history.pushState(history.state, '', `?${p}`); show(true)
}

function unlike(id) {
  const p = new URLSearchParams(location.search), kept = p.getAll('less').filter(n => n !== id)
  p.delete('less'); for (const n of kept) p.append('less', n)
  history.pushState(history.state, '', p.size ? `?${p}` : './'); show()
}

function mixItem(src, words, ...controls) {
  return el('li', {}, tile(src), el('span', {}, words), ...controls.map(([textContent, does, what = words]) => {
    const b = el('button', {type: 'button', textContent, ariaLabel: `${textContent}: ${what}`})
    b.addEventListener('click', () => { does(); $('add').hidden ? $('copy').focus() : $('add').focus() }); return b
  }))
}

function showMix(now) {
  const drop = (list, n) => list.filter(m => m !== n)
  const items = now.more.map(n => mixItem(urlOf(uploads.get(n)), `Also like ${uploads.get(n).name}`,
    ['Less like it', () => setFiles({more: drop(now.more, n), lessFiles: [...now.lessFiles, n]})], ['Remove', () => setFiles({more: drop(now.more, n)})]))
  items.push(...now.lessFiles.map(n => mixItem(urlOf(uploads.get(n)), `Less like ${uploads.get(n).name}`,
    ['More like it', () => setFiles({more: [...now.more, n], lessFiles: drop(now.lessFiles, n)})], ['Remove', () => setFiles({lessFiles: drop(now.lessFiles, n)})])))
  items.push(...now.less.map(id => mixItem(image(id, now.v ?? '', 128), `Less like ${nameOf(id, now.v)}`, ['Remove', () => unlike(id)])))
  $('mixed').replaceChildren(...items); $('mixed').hidden = !items.length
  $('add').hidden = now.like != null   // likeness asks with vectors of candidates
}
$('add').addEventListener('click', () => $('add-file').click())
$('add-file').addEventListener('change', () => { addFiles($('add-file').files); $('add-file').value = '' })

// ---- the searches of this visit, in the memory of this page alone

const names = new Map()   // version and number -> path of a candidate that was shown
const nameOf = (id, v) => names.get(`${v} ${id}`) ?? `candidate ${id}`
const past = new Map()    // address and state -> {url, state, src, words}, the newest last

function inWords(now, file, a) {
  const what = file ? file.name || 'Your picture' : now.query != null ? a.query?.query_path ?? `Query ${now.query}` :
    `${now.like != null ? 'More like ' : ''}${nameOf(now.id ?? now.like, now.v ?? a.version)}`
  const less = now.less.length + now.lessFiles.length
  return [what, now.box && 'a part', now.more.length && `and ${plural(now.more.length, 'more picture')}`,
          less && `less like ${less}`, now.where && `where ${now.where}`].filter(Boolean).join(', ')
}

const keyOf = () => JSON.stringify([location.search, history.state])
function remember(now, file, a) {
  for (const h of a.hits) names.set(`${a.version} ${h.id}`, h.cand_path)
  const key = keyOf()
  past.delete(key); past.set(key, {url: location.search || './', state: history.state, src: $('preview').src, words: inWords(now, file, a)})
  if (past.size > 24) past.delete(past.keys().next().value)
  drawPast()
}

function drawPast() {
  $('past').hidden = past.size < (past.has(keyOf()) ? 2 : 1)
  $('past-list').replaceChildren(...[...past].reverse().map(([key, {url, state, src, words}]) => {
    const b = el('button', {type: 'button', title: words}, tile(src), el('span', {className: 'name'}, words))
    if (key === keyOf()) b.setAttribute('aria-current', 'true')
    b.addEventListener('click', () => { history.pushState(state, '', url); show(true); scrollTo({top: 0}) }); return el('li', {}, b)
  }))
}

// ---- a link that brings a search back, for others too: it holds numbers and words, no uploaded picture

const onlyNumbers = now => now.upload == null && !now.more.length && !now.lessFiles.length
function showLink(now) { $('copy').hidden = !onlyNumbers(now); $('no-link').hidden = onlyNumbers(now); $('copied').textContent = '' }

let lastVersion = ''
$('copy').addEventListener('click', async () => {
  const url = new URL(location.href)
  if (!url.searchParams.has('v')) url.searchParams.set('v', lastVersion)
  url.searchParams.set('topk', $('topk').value); url.searchParams.set('fold', Number($('fold').checked))
  try { await navigator.clipboard.writeText(url.href); $('copied').textContent = 'The link is copied.' }
  catch { history.replaceState(history.state, '', url.search); $('copied').textContent = 'The address of this page is the link now.' }
})
function fromLink() {   // a link says how many hits, and whether near copies are folded: these are controls here
  const p = new URLSearchParams(location.search)
  if (p.has('topk')) sessionStorage.topk = Math.min(1000, Math.max(1, Math.trunc(Number(p.get('topk'))) || 10))
  if (p.has('fold')) sessionStorage.fold = p.get('fold')
  p.delete('topk'); p.delete('fold')
  history.replaceState(history.state, '', p.size ? `?${p}` : './')
}

// ---- what a hit shares with the picture: outlined on both, and in words

function outline(img, corners) {   // over a tile: the view box is fitted into it as the picture is
  const make = name => document.createElementNS('http://www.w3.org/2000/svg', name)
  const svg = make('svg'), lines = [make('polygon'), make('polygon')]
  svg.setAttribute('class', 'outline'); svg.setAttribute('aria-hidden', 'true'); svg.append(...lines)
  const draw = () => {
    const w = img.naturalWidth, h = img.naturalHeight
    if (!w) return
    svg.setAttribute('viewBox', `0 0 ${w} ${h}`)
    for (const line of lines) line.setAttribute('points', corners.map(([x, y]) => `${x * w},${y * h}`).join(' '))
  }
  img.addEventListener('load', draw); draw()
  return svg
}

function part(corners) {   // where they lie, in words
  const span = i => { const all = corners.map(c => c[i]); return [Math.min(...all), Math.max(...all)] }
  const [left, right] = span(0), [top, bottom] = span(1)
  if ((right - left) * (bottom - top) > .7) return 'nearly all'
  const side = (middle, first, last) => middle < .4 ? first : middle > .6 ? last : ''
  const where = [side((top + bottom) / 2, 'upper', 'lower'), side((left + right) / 2, 'left', 'right')]
  return `the ${where.filter(Boolean).join(' ') || 'middle'} part`
}

const asker = () => view().upload != null ? 'your picture' : 'the query'
const sharing = h => `${h.inliers} details agree: ${part(h.region.query)} of ${asker()} is ${part(h.region.candidate)} of this one${h.region.mirrored ? ', mirrored' : ''}`

let shared = null
function share(h) {   // outline on the picture what this hit has of it
  if (h === shared) return
  shared = h; $('frame').querySelector('.outline')?.remove()
  $('shared').textContent = h ? `Outlined: what it shares with hit ${h.rank}` : ''
  if (h) $('frame').append(outline($('preview'), h.region.query))
}

// ---- the hits

function hits(a, now) {
  const none = a.hits.findIndex(h => h.match === false), list = a.hits.map(h => hit(h, a))
  const copies = a.hits.filter(h => h.region), foldedIn = a.hits.reduce((sum, h) => sum + (h.folded ?? 0), 0)
  lastVersion = a.version; lastHits = a.hits
  if (now.query != null) labelling?.shown(Number(now.query))
  const matches = a.hits.filter(h => h.match).length   // the same picture is none, and not "no match" either
  if (none >= 0) list.splice(none, 0, el('li', {className: 'limit'}, `${matches ? 'No match from here on' : 'No match'}: scores under ${a.threshold.toFixed(2)}`))
  $('hits').replaceChildren(...list); $('results').hidden = false
  say(`${plural(a.hits.length, 'hit')} in ${a.latency_ms.total.toFixed(a.latency_ms.total < 10 ? 1 : 0)} ms` +
      (foldedIn ? `, ${foldedIn === 1 ? '1 near copy' : `${foldedIn} near copies`} folded into them` : '') +
      (a.threshold == null ? '' : matches ? `, ${matches} of them a match` : ', none of them a match') +
      (a.verified == null ? '' : copies.length ? `, ${copies.length} with the same details` : ', none with the same details') +
      (a.verified < a.hits.length ? `; only ${a.verified} could be compared in time` : ''))
  share(copies[0] ?? null)
  if (a.query) example(a)
}

function framed(src, region) {   // a hit's picture
  const img = tile(src)
  return el('span', {className: 'frame'}, img, region ? outline(img, region.candidate) : '')
}

function hit(h, a) {
  const b = el('button', {type: 'button', title: h.cand_path},
    framed(image(h.id, a.version, 256), h.region),
    el('span', {className: 'score'}, el('span', {}, el('span', {className: 'sr'}, 'Hit '), `${h.rank}`),
       h.right ? el('span', {className: 'right'}, '✓ right') : '', el('span', {}, el('span', {className: 'sr'}, 'score '), h.score.toFixed(3))),
    h.region ? el('span', {className: 'details'}, sharing(h)) : '',
    h.same_picture ? el('span', {className: 'same'}, 'The same picture') : '',
    el('span', {className: 'name'}, h.cand_path),
    h.attributes ? el('span', {className: 'facts'}, facts(h.attributes)) : '',
    el('span', {className: 'sr'}, `${h.match == null ? '' : h.match ? ', match' : ', no match'}. Search with this picture`))
  b.addEventListener('click', () => go({id: h.id, v: a.version}))
  if (h.region) for (const when of ['focus', 'pointermove']) b.addEventListener(when, () => share(h))
  const like = el('button', {type: 'button', className: 'like', ariaLabel: `More like this: hit ${h.rank}`, textContent: 'More like this'})
  like.addEventListener('click', () => go({like: h.id, v: a.version}))
  const less = el('button', {type: 'button', className: 'like', ariaLabel: `Less like this: hit ${h.rank}`, textContent: 'Less like this'})
  less.addEventListener('click', () => lessLike(h.id, a.version))
  return el('li', {className: `${h.match === false ? 'nomatch' : ''} ${h.right ? 'isright' : ''}`}, b, el('span', {className: 'acts'}, like, less), judge && oneAsked(view()) ? judge.buttons(h) : '', ...nearCopies(h, a))
}

function nearCopies(h, a) {   // that were folded into a hit: a count, which opens
  if (!h.folded) return []
  const list = el('div', {className: 'copies', hidden: true}, ...h.copies.map(c => {
    const words = `Near copy ${c.cand_path}, score ${c.score.toFixed(3)}${c.right ? ', right' : ''}. Search with it`
    const b = el('button', {type: 'button', className: 'like', title: c.cand_path}, tile(image(c.id, a.version, 128), words))
    b.addEventListener('click', () => go({id: c.id, v: a.version})); return b
  }))
  const right = h.copies.some(c => c.right) ? ', ✓ a right one' : ''
  const count = el('button', {type: 'button', className: 'like', ariaExpanded: 'false'},
    h.folded === 1 ? '+ 1 near copy' : `+ ${h.folded} near copies`, right, el('span', {className: 'sr'}, ` of hit ${h.rank}`))
  count.addEventListener('click', () => { list.hidden = !list.hidden; count.ariaExpanded = String(!list.hidden) })
  return [count, list]
}

// ---- what people say of hits, where the server takes it: verdicts are about one picture that was searched with

let judge = null, labelling = null, lastHits = []
const oneAsked = now => now.like == null && !now.more.length && !now.less.length && !now.lessFiles.length

async function sendVerdict(h, verdict) {   // the picture goes along: the server keeps no uploads
  const now = view(), p = new URLSearchParams({hit: h.id, verdict, v: lastVersion})
  if (now.v && now.v !== lastVersion) throw new Error('The catalogue has changed meanwhile. Search again first.')
  for (const name of ['id', 'query', 'box']) if (now[name] != null) p.set(name, now[name])
  if (now.upload == null) return get(`feedback?${p}`, {method: 'POST'})
  const body = new FormData(); body.append('image', uploads.get(now.upload), 'picture')
  return get(`feedback?${p}`, {method: 'POST', body})
}

async function allWrong() {   // none of the hits on the page is right
  try {
    for (const h of lastHits) labelling.counted((await sendVerdict(h, 'wrong')).counts)
    return true
  } catch (e) { say(e.message, true); return false }
}

function pressRight(rank) {
  document.querySelectorAll('#hits [data-verdict=right]')[rank - 1]?.click()
}

async function startFeedback(health) {
  judge = new Verdicts({send: sendVerdict, say, after: (verdict, counts) => {
    labelling?.counted(counts)
    if (verdict === 'right') labelling?.next()
  }})
  addEventListener('keydown', verdictKeys)
  if (!health.labels) return
  labelling = new Labelling({count: health.examples, go: n => go({query: n, v: health.version}), press: pressRight, none: allWrong, say})
  $('examples-title').textContent = 'Pictures to label'
  labelling.counted(await get('feedback'))
  if (view().query == null) history.replaceState(null, '', `?query=0&v=${health.version}`)
}

const facts = known => Object.entries(known).filter(([, v]) => v != null && v !== '')
  .map(([name, v]) => `${name} ${Array.isArray(v) ? v.join(', ') : v}`).join(' · ')

const place = r => r == null ? 'not found' : `rank ${r}`
function example(a) {   // what is known of an evaluation query
  if (labelling) return $('told').replaceChildren(el('strong', {}, 'Which hits are right?'), el('p', {className: 'soft'}, a.query.query_path))
  const q = a.query, shown = a.hits.flatMap(h => [h, ...h.copies ?? []])
  const missing = q.answers.filter(c => c.id != null && !shown.some(h => h.id === c.id))
  const lines = [el('strong', {}, 'Evaluation query'), el('p', {className: 'soft'}, q.query_path),
                 el('p', {}, `In the evaluation: ${place(q.rank)}; before training: ${place(q.baseline_rank)}`)]
  const n = a.hits.filter(h => h.right).length
  lines.push(el('p', {className: n ? 'right' : 'soft'}, n ? `✓ ${plural(n, 'right answer')} among the hits` : 'No right answer among the hits'))
  if (missing.length) lines.push(el('p', {}, 'Right, and not among the hits:'), el('div', {className: 'answers'}, ...missing.slice(0, 5).map(c => {
    const b = el('button', {type: 'button', title: c.cand_path}, tile(image(c.id, a.version, 128), `Right answer ${c.cand_path}. Search with it`))
    b.addEventListener('click', () => go({id: c.id, v: a.version})); return b
  })))
  $('told').replaceChildren(...lines)
}

// ---- filters: chips and ranges write an expression, which can be edited, too

const sqlName = name => `"${name.replaceAll('"', '""')}"`
const sqlText = text => `'${String(text).replaceAll("'", "''")}'`
const parts = new Map()   // attribute -> its part of the expression

function filtered(text) {
  const p = new URLSearchParams(location.search)
  if (text) p.set('where', text); else p.delete('where')
  history.replaceState(history.state, '', p.size ? `?${p}` : './'); show()
}
function put(name, part) {
  if (part) parts.set(name, part); else parts.delete(name)
  filtered([...parts.values()].join(' and '))
}

function range(a) {   // of a number or a date: from, to
  const type = a.type, value = v => type === 'date' ? sqlText(v) : v
  const ends = ['from', 'to'].map((word, i) => el('input', {type, step: 'any', ariaLabel: `${a.name} ${word}`, placeholder: String([a.low, a.high][i] ?? '')}))
  for (const end of ends) end.addEventListener('change', () => {
    const [from, to] = ends.map(e => e.value)
    put(a.name, [from && `${sqlName(a.name)} >= ${value(from)}`, to && `${sqlName(a.name)} <= ${value(to)}`].filter(Boolean).join(' and '))
  })
  return [ends[0], ' to ', ends[1]]
}

function chips(a) {   // of a text, a yes or no, or a list: any of the values that are pressed
  const pressed = new Set()
  const written = {text: v => `${sqlName(a.name)} in (${v.map(sqlText).join(', ')})`, list: v => `list_has_any(${sqlName(a.name)}, [${v.map(sqlText).join(', ')}])`,
                   bool: v => `${sqlName(a.name)} in (${v.join(', ')})`}[a.type]
  return a.values.map(({value, count}) => {
    const b = el('button', {type: 'button', ariaPressed: 'false'}, `${value} `, el('span', {className: 'soft'}, count.toLocaleString('en')))
    b.addEventListener('click', () => {
      if (!pressed.delete(value)) pressed.add(value)
      b.ariaPressed = String(pressed.has(value)); put(a.name, pressed.size ? written([...pressed]) : '')
    })
    return b
  })
}

async function filters() {
  const {attributes} = await get('attributes')
  $('filters').hidden = !attributes.length; $('attributes').replaceChildren()
  for (const a of attributes) {
    const unlike = a.values?.length === 20 && a.values[0].count === 1   // names, not kinds
    const controls = unlike ? [] : a.values ? chips(a) : range(a)
    if (controls.length) $('attributes').append(el('div', {className: 'row', role: 'group', ariaLabel: a.name}, el('strong', {}, a.name), ...controls))
  }
}
$('filters').addEventListener('submit', e => { e.preventDefault(); parts.clear(); filtered($('where-text').value.trim()); return filters() })
$('clear').addEventListener('click', () => { parts.clear(); filtered(''); filters() })

// ---- files: chosen, photographed, dropped, pasted

function use(file) {
  if (!file) return
  uploads.set(uploads.size, file); go({}, {upload: uploads.size - 1})
}
for (const [button, input] of [['choose', 'file'], ['photo', 'camera']]) {
  $(button).addEventListener('click', () => $(input).click())
  $(input).addEventListener('change', () => { use($(input).files[0]); $(input).value = '' })
}
let deep = 0   // a drag enters every element on its way
const over = n => { deep = n; document.body.classList.toggle('over', deep > 0) }
addEventListener('dragenter', e => { e.preventDefault(); over(deep + 1) })
addEventListener('dragleave', () => over(Math.max(0, deep - 1)))
addEventListener('dragover', e => e.preventDefault())
addEventListener('drop', e => {
  e.preventDefault(); over(0)
  if (e.dataTransfer.files.length) use(e.dataTransfer.files[0]); else say('That was no file. Drop a picture file.', true)
})
addEventListener('paste', e => {
  if (e.clipboardData.files.length) use(e.clipboardData.files[0]); else say('There is no picture in the clipboard.', true)
})

// ---- examples

async function more(anew) {
  if (anew) { shown = 0; $('strip').replaceChildren() }
  const d = await get(`examples?kind=${kind}&offset=${shown}&limit=24`)
  if (!d.counts.all) return
  $('examples').hidden = false
  const names = {all: 'All', found: 'Found first', missed: 'Not found first', gained: 'Gained by training', lost: 'Lost by training'}
  $('kinds').replaceChildren(...Object.entries(names).filter(([k]) => d.counts[k]).map(([k, name]) => {
    const b = el('button', {type: 'button', ariaPressed: String(k === kind), textContent: `${name} ${d.counts[k].toLocaleString('en')}`})
    b.addEventListener('click', async () => { kind = k; await more(true); $('kinds').querySelector('[aria-pressed=true]')?.focus() }); return b
  }))
  $('strip').append(...d.examples.map(q => {
    const b = el('button', {type: 'button', title: q.query_path}, tile(query(q.i, d.version, 128), `Query ${q.query_path}`),
                 el('span', {className: q.rank === 1 ? 'right' : 'soft'}, q.rank === 1 ? '✓ found' : place(q.rank)))
    b.addEventListener('click', () => { go({query: q.i, v: d.version}); scrollTo({top: 0}) }); return el('li', {}, b)
  }))
  shown += d.examples.length; $('more').hidden = shown >= d.counts[kind]
}
$('more').addEventListener('click', () => more(false))

// ---- keys: / to choose, arrows among hits and examples

addEventListener('keydown', e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return
  if (e.key === '/' && !e.target.closest('select')) { e.preventDefault(); $('choose').focus(); $('choose').scrollIntoView({block: 'center'}) }
  const grid = e.target.closest('.grid'), step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 'down', ArrowUp: 'up'}[e.key]
  if (!grid || !step) return
  const all = [...grid.querySelectorAll('button:not(.like)')], i = all.indexOf(e.target.closest('li').querySelector('button')), x = b => b.getBoundingClientRect()
  const near = c => Math.abs(x(c).left - x(e.target).left) < 8
  const to = step === 'down' ? all.slice(i + 1).find(near) : step === 'up' ? all.slice(0, i).reverse().find(near) : all[i + step]
  if (to) { e.preventDefault(); to.focus() }
})

// The link to the hits keeps the address: another one would be another view, without them
document.querySelector('.skip').addEventListener('click', e => { e.preventDefault(); $($('results').hidden ? 'choose' : 'results').focus() })

// ---- the token, where the server wants one: sent once, for a cookie that no script can read

function login() {
  for (const id of ['ask', 'query', 'results', 'examples']) $(id).hidden = true
  say(''); $('login').hidden = false; $('token').focus()
}
$('login').addEventListener('submit', async e => {
  e.preventDefault(); $('refused').textContent = ''
  const token = $('token').value.trim(), sound = /^[!-~]+$/.test(token)
  try {
    if (!sound) throw new Error('This is not the token of this server.')
    const r = await fetch('login', {method: 'POST', headers: {Authorization: `Bearer ${token}`}})
    if (!r.ok) throw new Error((await r.json()).error.detail)
    $('token').value = ''; $('login').hidden = true; start()
  } catch (e) { $('refused').textContent = e.message; $('token').select() }
})

// ---- start

async function start() {
  const health = await get('health').catch(e => { say(e.message, true); return null })
  if (!health) return
  if (health.needs_token) return login()
  $('ask').hidden = false
  fromLink()
  if (health.feedback) await startFeedback(health)
  folds = health.folds; $('folding').hidden = !folds; $('fold').checked = sessionStorage.fold !== '0'
  limitMB = health.max_upload_mb; $('about').textContent = `among ${plural(health.candidates, 'picture')}`
  const k = sessionStorage.topk ?? String(health.topk)
  if (![...$('topk').options].some(o => o.value === k)) $('topk').append(el('option', {textContent: k}))
  $('topk').value = k
  show(); more(true).catch(e => say(e.message, true)); filters().catch(e => say(e.message, true))
}

$('home').addEventListener('click', e => { e.preventDefault(); go({}) })
$('topk').addEventListener('change', () => { sessionStorage.topk = $('topk').value; show() })
$('fold').addEventListener('change', () => { sessionStorage.fold = Number($('fold').checked); show() })
addEventListener('popstate', () => show())
$('where').textContent = ['127.0.0.1', 'localhost', '[::1]'].includes(location.hostname) ? 'this machine' : location.host
start()
