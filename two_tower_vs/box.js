// A box on a picture, in shares of its width and height: drawn with a mouse or a finger, or moved with the keys.
const least = .04, step = .02
const within = (v, low, high) => Math.min(high, Math.max(low, v))
const div = (className, props = {}) => Object.assign(document.createElement('div'), {className, ...props})
const percent = v => `${(100 * v).toFixed(3)}%`

export const boxText = b => ['x', 'y', 'w', 'h'].map(k => Number(b[k].toFixed(4))).join(',')
export function boxOf(text) {   // null for what is no box
  const [x, y, w, h] = (text ?? '').split(',').map(Number)
  return [x, y, w, h].every(Number.isFinite) && w > 0 && h > 0 ? {x, y, w, h} : null
}
const inWords = b => `Left ${Math.round(100 * b.x)} %, top ${Math.round(100 * b.y)} %, ` +
  `${Math.round(100 * b.w)} % wide, ${Math.round(100 * b.h)} % high`

function put(node, {x, y, w, h}) { Object.assign(node.style, {left: percent(x), top: percent(y), width: percent(w), height: percent(h)}) }

function pictureIn(img) {   // where a tile shows its picture: 5 % of padding, and fitted into the rest
  const {naturalWidth: w, naturalHeight: h} = img
  if (!w || !h) return null
  const wide = .9 * Math.min(1, w / h), high = .9 * Math.min(1, h / w)
  return {x: (1 - wide) / 2, y: (1 - high) / 2, w: wide, h: high}
}

function between(a, b) {   // the box of two corners
  return {x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), w: Math.abs(a.x - b.x), h: Math.abs(a.y - b.y)}
}
function moved(b, dx, dy) { return {...b, x: within(b.x + dx, 0, 1 - b.w), y: within(b.y + dy, 0, 1 - b.h)} }
function resized(b, dx, dy) { return {...b, w: within(b.w + dx, least, 1 - b.x), h: within(b.h + dy, least, 1 - b.y)} }

export class PartBox {
  constructor(frame, img, {search, remove, help}) {
    this.frame = frame; this.img = img; this.search = search; this.remove = remove
    this.box = this.drag = null; this.off = false   // off: no part of this picture can be searched with
    this.area = div('part-area'); this.field = div('part-field')
    this.node = div('part-box', {tabIndex: 0, hidden: true})
    this.node.setAttribute('role', 'application'); this.node.setAttribute('aria-describedby', help)
    this.node.setAttribute('aria-roledescription', 'box on the picture')
    this.node.append(...['nw', 'ne', 'sw', 'se'].map(corner => div(`part-corner ${corner}`)))
    this.field.append(this.node); this.area.append(this.field); frame.append(this.area)
    this.listen()
  }

  listen() {
    this.img.addEventListener('load', () => this.draw())
    this.field.addEventListener('pointerdown', e => this.begin(e))
    this.field.addEventListener('pointermove', e => this.follow(e))
    this.field.addEventListener('pointerup', e => this.end(e))
    this.field.addEventListener('pointercancel', () => this.give(this.drag?.before ?? this.box))
    this.node.addEventListener('keydown', e => this.key(e))
  }

  give(box) { this.drag = null; this.box = box; this.draw() }   // show this box; null: none

  draw() {
    const at = pictureIn(this.img)
    this.area.hidden = !at; this.node.hidden = !this.box
    if (at) put(this.field, at)
    if (!this.box) return
    put(this.node, this.box); this.node.ariaLabel = `The part to search with. ${inWords(this.box)}`
  }

  point(e) {   // in shares of the picture
    const r = this.field.getBoundingClientRect()
    return {x: within((e.clientX - r.left) / r.width, 0, 1), y: within((e.clientY - r.top) / r.height, 0, 1)}
  }

  begin(e) {   // a finger draws only where a part is being chosen: elsewhere it scrolls the page
    if (this.off || e.button || this.drag || e.pointerType === 'touch' && !this.box) return
    e.preventDefault(); this.field.setPointerCapture(e.pointerId)
    const start = this.point(e), b = this.box, corner = e.target.closest('.part-corner')
    const fixed = corner && {x: corner.matches('.nw, .sw') ? b.x + b.w : b.x, y: corner.matches('.nw, .ne') ? b.y + b.h : b.y}
    this.drag = {start, before: b, fixed: fixed ?? start, moves: !corner && e.target === this.node}
  }

  follow(e) {
    if (!this.drag) return
    const {start, before, fixed, moves} = this.drag, now = this.point(e)
    this.box = moves ? moved(before, now.x - start.x, now.y - start.y) : between(fixed, now)
    this.draw()
  }

  end(e) {
    if (!this.drag) return
    this.follow(e)
    const {before} = this.drag, b = this.box, same = before && boxText(b) === boxText(before)
    if (b.w < least || b.h < least || same) return this.give(before)   // a click
    this.give(b); this.node.focus({preventScroll: true}); this.search(b)
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return
    const go = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[e.key]
    if (go) this.give((e.shiftKey ? resized : moved)(this.box, ...go))
    else if (e.key === 'Enter') this.search(this.box)
    else if (e.key === 'Escape') this.remove()
    else return
    e.preventDefault(); e.stopPropagation()
  }
}
