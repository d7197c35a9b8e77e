'use strict';
const $ = id => document.getElementById(id), D = JSON.parse($('data').textContent), N = D.names.length, M = D.candidates;
const canvas = $('map'), ctx = canvas.getContext('2d'), sprite = new Image(), least = .8, most = 60;
const answered = Array.from({length: N}, () => []);   // candidate -> queries that it answers
D.right.forEach((r, i) => r.forEach(j => answered[j].push(M + i)));
let view = {x: .5, y: .5, k: 1}, at = -1, chosen = -1, W = 0, H = 0, waiting = false, C = {};

const shown = i => i < M || $('queries').checked;
const scale = () => view.k * Math.min(W, H) * .94;
const spot = i => [W/2 + (D.x[i] - view.x) * scale(), H/2 + (D.y[i] - view.y) * scale()];
const size = () => Math.max(7, Math.min(96, scale() * D.cell));
const rank = i => D.rank[i - M];
const missing = new Set(D.missing);

function colours() {
  const s = getComputedStyle(document.documentElement);
  for (const c of ['accent', 'right', 'missed', 'tile', 'soft']) C[c] = s.getPropertyValue('--' + c).trim();
  draw();
}

function resize() {
  W = canvas.clientWidth; H = canvas.clientHeight; const r = devicePixelRatio || 1;
  canvas.width = W * r; canvas.height = H * r; ctx.setTransform(r, 0, 0, r, 0, 0); draw();
}

function draw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); } }

function line(i, j, colour, dash, width) {
  ctx.beginPath(); ctx.moveTo(...spot(i)); ctx.lineTo(...spot(j)); ctx.setLineDash(dash); ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.stroke();
}

function cut(context, i, x, y, s) {
  const side = D.side;
  context.drawImage(sprite, i % D.columns * side, Math.floor(i / D.columns) * side, side, side, x, y, s, s);
}

function picture(i, alpha) {
  const [x, y] = spot(i), s = size();
  if (x < -s || y < -s || x > W + s || y > H + s) return;
  ctx.globalAlpha = alpha; ctx.fillStyle = C.tile; ctx.fillRect(x - s/2, y - s/2, s, s); cut(ctx, i, x - s/2, y - s/2, s);
  if (i >= M) frame(i, C.accent, s > 20 ? 2 : 1);
  ctx.globalAlpha = 1;
}

function frame(i, colour, width) {
  const [x, y] = spot(i), s = size() + width; ctx.setLineDash([]); ctx.strokeStyle = colour; ctx.lineWidth = width; ctx.strokeRect(x - s/2, y - s/2, s, s);
}

function paint() {
  ctx.clearRect(0, 0, W, H);
  const near = chosen < 0 ? [] : D.near[chosen], links = chosen < 0 ? [] : chosen < M ? answered[chosen] : D.right[chosen - M];
  const lit = new Set([chosen, ...near, ...links]), dim = chosen < 0 ? 1 : .3;
  if ($('queries').checked) D.right.forEach((r, i) => r.forEach(j => {
    ctx.globalAlpha = chosen < 0 || i + M === chosen || j === chosen ? .8 : .15;
    line(i + M, j, rank(i + M) === 1 ? C.right : C.missed, rank(i + M) === 1 ? [] : [5, 4], 1.5);
  }));
  ctx.globalAlpha = 1;
  for (let i = 0; i < N; i++) if (shown(i) && !lit.has(i)) picture(i, dim);
  near.forEach(j => line(chosen, j, C.accent, [], 1));
  for (const i of lit) if (i >= 0 && shown(i)) picture(i, 1);
  near.forEach(j => frame(j, C.accent, 1.5));
  if (chosen >= 0) frame(chosen, C.accent, 4);
  if (at >= 0) { picture(at, 1); frame(at, C.accent, 3); }
}

function under(x, y) {   // the topmost picture at a place of the canvas
  const s = size() / 2;
  for (let i = N - 1; i >= 0; i--) if (shown(i)) { const [a, b] = spot(i); if (Math.abs(a - x) <= s && Math.abs(b - y) <= s) return i; }
  return -1;
}

function zoom(by, x = W/2, y = H/2) {
  const k = Math.max(least, Math.min(most, view.k * by)), s = scale(), f = 1/s - 1/(s * k / view.k);
  view.x += (x - W/2) * f; view.y += (y - H/2) * f; view.k = k; tip(-1); draw();
}

const kind = i => i < M ? 'candidate' : rank(i) === 1 ? 'evaluation query, answered first' :
  'evaluation query, right answer at ' + (rank(i) ? 'rank ' + rank(i).toLocaleString('en') : 'no rank: it is no candidate');

function tip(i) {
  at = i; $('tip').hidden = i < 0; draw();
  if (i < 0) return;
  const t = $('tip'), [x, y] = spot(i), s = size() / 2; t.textContent = D.names[i];
  t.style.left = Math.max(4, Math.min(W - t.offsetWidth - 4, x + s + 6)) + 'px';
  t.style.top = Math.max(4, Math.min(H - t.offsetHeight - 4, y - t.offsetHeight / 2)) + 'px';
}

function make(tag, text, cls) { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; }

function small(i) { const c = make('canvas'); c.width = c.height = D.side; cut(c.getContext('2d'), i, 0, 0, D.side); c.setAttribute('aria-hidden', 'true'); return c; }

function list(title, items, said) {
  const ol = make('ol'); $('panel').append(make('h3', title), ol);
  items.forEach((i, n) => {
    const li = make('li'), b = make('button'); b.type = 'button'; b.title = D.names[i];
    b.append(small(i), make('span', D.names[i] + ' ', 'sr'), ...said(i, n)); b.onclick = () => { choose(i, true); $('panel').focus(); }; li.append(b); ol.append(li);
  });
}

const verdict = i => rank(i) === 1 ? make('span', '✓ first', 'right') : make('span', rank(i) ? 'rank ' + rank(i).toLocaleString('en') : 'not found', 'no');

function choose(i, go) {
  chosen = i; const p = $('panel'); p.replaceChildren(); $('hint').hidden = i >= 0; $('told').textContent = '';
  if (i < 0) return draw();
  if (i >= M) $('queries').checked = true;
  p.append(small(i), make('h2', D.names[i]), make('p', kind(i), i < M ? 'soft' : rank(i) === 1 ? 'right' : 'no'));
  if (missing.has(i)) p.append(make('p', 'Its picture cannot be read.', 'no'));
  const right = i < M ? [] : D.right[i - M];
  if (right.length) list(right.length > 1 ? 'Right answers' : 'Right answer', right, () => []);
  list(D.nearest, D.near[i], (j, n) => [make('span', (D.score[i][n] / 1000).toFixed(2)), ...(right.includes(j) ? [make('br'), make('span', '✓ right', 'right')] : [])]);
  if (answered[i].length) list('Evaluation queries that it answers', answered[i], q => [verdict(q)]);
  const close = make('button', 'Close', 'plain'); close.type = 'button'; close.style.marginTop = '1rem'; close.onclick = () => { choose(-1); canvas.focus(); }; p.append(close);
  if (go) { view.x = D.x[i]; view.y = D.y[i]; view.k = Math.max(view.k, 3); tip(-1); }
  $('told').textContent = `${D.names[i]}: ${kind(i)}`; draw();
}

function step(dx, dy) {   // to the nearest picture in that direction
  if (at < 0) { const s = chosen >= 0 ? chosen : under(W/2, H/2); if (s >= 0) return land(s); }
  const [x, y] = at < 0 ? [W/2, H/2] : spot(at); let best = -1, cost = Infinity;
  for (let i = 0; i < N; i++) {
    if (i === at || !shown(i)) continue;
    const [a, b] = spot(i), along = (a - x) * dx + (b - y) * dy, aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx), c = along + 3 * aside;
    if ((along > 1e-6 && along >= aside || at < 0) && c < cost) { best = i; cost = c; }
  }
  if (best >= 0) land(best);
}

function land(i) {
  let [x, y] = spot(i); const m = Math.min(W, H) * .15;
  if (x < m || x > W - m) view.x = D.x[i]; if (y < m || y > H - m) view.y = D.y[i];
  tip(i); $('told').textContent = `${D.names[i]}: ${kind(i)}`;
}

canvas.onkeydown = e => {
  const go = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[e.key];
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (go) step(...go);
  else if (e.key === 'Enter' || e.key === ' ') { if (at >= 0) choose(at); }
  else if (e.key === '+' || e.key === '=') keep(() => zoom(1.5));
  else if (e.key === '-') keep(() => zoom(1 / 1.5));
  else if (e.key === '0') whole();
  else if (e.key === 'Escape') choose(-1);
  else return;
  e.preventDefault();
};
function keep(f) { const i = at; if (i >= 0) { view.x = D.x[i]; view.y = D.y[i]; } f(); tip(i); }   // zoom about the picture in focus
function whole() { view = {x: .5, y: .5, k: 1}; tip(-1); draw(); }

const fingers = new Map(), apart = (p, q) => Math.max(1, Math.hypot(p[0] - q[0], p[1] - q[1])); let moved = 0;
canvas.onpointerdown = e => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, [e.offsetX, e.offsetY]); moved = fingers.size === 1 ? 0 : 99; };   // two fingers are no tap, however still
canvas.onpointermove = e => {
  const was = fingers.get(e.pointerId), now = [e.offsetX, e.offsetY];
  if (!was) { if (e.pointerType === 'mouse') { const i = under(...now); if (i !== at) tip(i); canvas.style.cursor = i < 0 ? 'grab' : 'pointer'; } return; }
  fingers.set(e.pointerId, now); const [dx, dy] = [now[0] - was[0], now[1] - was[1]]; moved += Math.abs(dx) + Math.abs(dy);
  const other = [...fingers].find(([id]) => id !== e.pointerId)?.[1];
  if (!other && moved < 6) return;
  view.x -= dx / scale() / fingers.size; view.y -= dy / scale() / fingers.size;
  if (other) zoom(apart(now, other) / apart(was, other), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  tip(-1); draw();
};
canvas.onpointerup = e => {
  if (fingers.delete(e.pointerId) && !fingers.size && moved < 6) choose(under(e.offsetX, e.offsetY));
};
canvas.onpointercancel = e => fingers.delete(e.pointerId);
canvas.onpointerleave = () => { if (!fingers.size) tip(-1); };
canvas.addEventListener('wheel', e => { e.preventDefault(); zoom(Math.exp(-e.deltaY * (e.deltaMode ? .05 : .0015)), e.offsetX, e.offsetY); }, {passive: false});
$('in').onclick = () => zoom(1.5); $('out').onclick = () => zoom(1 / 1.5); $('whole').onclick = whole; $('queries').onchange = () => { tip(-1); draw(); };

function found(text) {   // the picture of that name, else the first whose name holds it; -1: none
  const t = text.trim().toLowerCase(); if (!t) return -1;
  const names = D.names.map(n => n.toLowerCase()), i = names.indexOf(t); return i < 0 ? names.findIndex(n => n.includes(t)) : i;
}
$('find').onsubmit = e => {
  e.preventDefault(); const i = found($('name').value);
  if (i >= 0) { choose(i, true); $('panel').focus(); } else { $('name').setCustomValidity('No name on this map holds that.'); $('name').reportValidity(); }
};
$('name').oninput = () => $('name').setCustomValidity('');
$('words').textContent = D.words; $('switch').hidden = $('legend').hidden = N === M;
for (const n of D.names) { const o = make('option'); o.value = n; $('names').append(o); }
sprite.onload = draw; sprite.src = D.sprite;
matchMedia('(prefers-color-scheme: dark)').onchange = colours;
new ResizeObserver(resize).observe(canvas); colours();
