// Labelling: one picture after the other, its hits with numbers, and the next one after each answer.
const $ = id => document.getElementById(id)

export class Labelling {
  constructor({count, go, press, none, say}) {   // go(number) shows a picture; press(rank) says right; none() says all are wrong
    Object.assign(this, {count, go, press, none, say, number: null})
    $('labelling').hidden = false
    document.body.classList.add('labelling')   // what only searching needs is out of the way
    $('label-none').addEventListener('click', () => this.noneOfThese())
    $('label-skip').addEventListener('click', () => this.next())
    addEventListener('keydown', e => this.key(e))
  }

  shown(number) {   // this picture is on the page
    this.number = number
    $('label-place').textContent = `Picture ${(number + 1).toLocaleString('en')} of ${this.count.toLocaleString('en')}`
  }

  counted({queries, right}) { $('label-count').textContent = `${queries} judged, ${right} right` }

  next() {
    if (this.number + 1 < this.count) return this.go(this.number + 1)
    this.say('That was the last picture. Train with train: {feedback: true}.')
  }

  async noneOfThese() {
    if (await this.none()) this.next()
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('input, select, textarea')) return
    if (e.key === 'n') { e.preventDefault(); return this.noneOfThese() }
    if (e.key === 's') { e.preventDefault(); return this.next() }
    const rank = e.key === '0' ? 10 : Number(e.key)
    if (rank >= 1) { e.preventDefault(); this.press(rank) }
  }
}
