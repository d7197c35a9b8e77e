// What people say of hits: two buttons on each, and the keys r and w. The server writes it down.
const el = (tag, props = {}, ...kids) => { const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e }
const words = {right: '✓ Right', wrong: '✗ Wrong'}

export class Verdicts {
  constructor({send, say, after}) {   // send(hit, verdict): a promise; after(verdict, counts): called when it is written
    Object.assign(this, {send, say, after})
  }

  buttons(hit) {   // for one hit; they show what was said of it
    const box = el('span', {className: 'verdicts', role: 'group', ariaLabel: `Hit ${hit.rank}: right or wrong?`})
    for (const verdict of ['right', 'wrong']) {
      const b = el('button', {type: 'button', className: 'like'}, words[verdict], el('span', {className: 'sr'}, `: hit ${hit.rank}`))
      b.dataset.verdict = verdict
      b.addEventListener('click', () => this.click(hit, verdict, box))
      box.append(b)
    }
    this.show(hit, box)
    return box
  }

  show(hit, box) {
    for (const b of box.querySelectorAll('button')) b.setAttribute('aria-pressed', String(b.dataset.verdict === hit.verdict))
  }

  async click(hit, verdict, box) {   // a second click takes the verdict back
    const said = hit.verdict === verdict ? 'none' : verdict
    try {
      const answer = await this.send(hit, said)
      hit.verdict = said === 'none' ? undefined : said
      this.show(hit, box)
      const {right, wrong} = answer.counts
      this.say(`${said === 'none' ? 'Taken back' : 'Written down'}: ${right} right and ${wrong} wrong so far`)
      this.after?.(said, answer.counts)
    } catch (e) { this.say(e.message, true) }
  }
}

export function verdictKeys(e) {   // r and w on a hit, or on a button of it
  const verdict = {r: 'right', w: 'wrong'}[e.key]
  const button = verdict && e.target.closest('#hits li')?.querySelector(`[data-verdict=${verdict}]`)
  if (button) { e.preventDefault(); button.click() }
}
