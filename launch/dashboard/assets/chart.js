"use strict";
// Draws a figure as SVG: lines with bands and marks, axes, values under the pointer, zoom by dragging, and a legend.
// Every text is set as text, never as HTML.

const EDGE = { left: 54, right: 10, top: 8, bottom: 22 }; // pixels around the plot
const DRAGGED = 6, CLEAR = 24; // pixels: a drag, and one that chooses a range of this direction
const LOG_FROM = 30; // automatic axes of positive values are logarithmic if they span more than this ratio
const DASHES = ["", "2 3", "7 4", "7 3 2 3", "12 4"];
const SHAPES = { // around 0 0
  fault: "M-4-4L4 4M-4 4L4-4", warning: "M0-4.5L4.5 3.5H-4.5Z", restart: "M0-5L5 0L0 5L-5 0Z",
  checkpoint: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0Z", note: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0Z",
};

function drawn(tag, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}

// ---- numbers --------------------------------------------------------------------------------------------------------

const power = (value) => Math.floor(Math.log10(Math.abs(value)) + 1e-9);
const digitsOf = (value, step) => Math.min(12, Math.max(1, 1 + power(value) - power(step)));

// A number in at most `digits` digits, with a letter for thousands, millions and so on.
function short(value, digits = 4) {
  const size = Math.abs(value);
  if (size && size < 1e-3) return value.toExponential(Math.max(0, Math.min(digits, 4) - 1)).replace(/\.?0+e/, "e");
  const [unit, letter] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([unit]) => size >= unit) || [1, ""];
  return `${Number((value / unit).toPrecision(digits))}${letter}`;
}

const FORMATS = {
  plain: (value, digits) => (Math.abs(value) >= 1e6 ? short(value, digits) : Math.abs(value) < 1e-3 ? short(value, digits)
    : String(Number(value.toPrecision(Math.max(digits, 4))))),
  count: short,
  percent: (value, digits) => `${Number((100 * value).toPrecision(digits))}%`,
  scientific: (value, digits) => (value ? value.toExponential(Math.max(1, digits - 1)).replace(/\.0e/, ".0e") : "0"),
  step: (value) => Math.round(value).toLocaleString("en"),
};

function ticks(low, high, most) {
  const rough = (high - low) / most, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough * (1 - 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) found.push(i * step);
  return found.map((value) => [value, value ? digitsOf(value, step) : 1]);
}

// Whether the ticks of a range differ in more digits than a number has.
const isReadable = (range) => !range || range[1] - range[0] > 1e-9 * Math.max(Math.abs(range[0]), Math.abs(range[1]));

function logTicks(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  for (const multiples of [[1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let e = first; e <= last; e++) for (const m of multiples) found.push(Number(`${m}e${e}`));
    const inside = found.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
    if (multiples.length === 3 && inside.length < 2) return ticks(low, high, most);
    if (inside.length <= most) return inside.map((value) => [value, 1]);
    if (multiples.length === 1) return inside.filter((_, n) => n % Math.ceil(inside.length / most) === 0).map((value) => [value, 1]);
  }
}

// Values from `low` to `high` become pixels from `start` to `end`.
function axisOf(low, high, start, end, log) {
  const of = log ? (value) => (value > 0 ? Math.log10(value) : NaN) : (value) => value;
  const [a, b] = [of(low), of(high)];
  return {
    low, high, log,
    at: (value) => (value === null ? NaN : start + ((of(value) - a) / (b - a)) * (end - start)),
    value: (pixel) => { const v = a + ((pixel - start) / (end - start)) * (b - a); return log ? 10 ** v : v; },
  };
}

function extent(values, log) {
  let low = Infinity, high = -Infinity;
  for (const value of values)
    if (value !== null && Number.isFinite(value) && (!log || value > 0)) { if (value < low) low = value; if (value > high) high = value; }
  return low <= high ? [low, high] : null;
}

// ---- one chart ------------------------------------------------------------------------------------------------------

// `zoomed` is called with the new horizontal range, or null for all. `show` takes
// { lines, bands, marks, healthy, x: { log, format }, y: { scale, format, fromZero }, empty }.
class Chart {
  constructor(box, zoomed) {
    this.box = box;
    this.zoomed = zoomed;
    this.view = { x: null, y: null };
    this.hidden = new Set();
    this.picture = drawn("svg", { class: "chart" });
    this.legend = make("div", "", { class: "legend" });
    this.tip = make("div", "", { class: "tip" });
    this.all = make("button", "show all", { class: "all", type: "button" });
    this.tip.hidden = this.all.hidden = true;
    this.all.addEventListener("click", () => this.zoom(null, null));
    box.append(this.picture, this.tip, this.all);
    box.after(this.legend);
    this.hear();
    new ResizeObserver(() => this.content && this.draw()).observe(box);
  }

  show(content) {
    this.content = content;
    this.draw();
  }

  shown(items) {
    return items.filter((item) => !this.hidden.has(item.name));
  }

  axes() {
    const { x, y } = this.content, { width, height } = this;
    const lines = this.shown(this.content.lines), bands = this.shown(this.content.bands);
    const across = this.view.x || extent(lines.flatMap((line) => line.x), x.log);
    if (!across) return null;
    const inside = (item, values) => values.filter((_, n) => item.x[n] >= across[0] && item.x[n] <= across[1]);
    const values = [...lines.flatMap((line) => inside(line, line.y)), ...bands.flatMap((band) => [...inside(band, band.low), ...inside(band, band.high)])];
    const found = extent(values, y.scale === "log");
    if (!found && !this.view.y) return null;
    const log = y.scale === "log" || (y.scale === "auto" && !y.fromZero && found && found[0] > 0 && found[1] / found[0] > LOG_FROM);
    let [low, high] = this.view.y || found;
    if (!this.view.y) [low, high] = padded(low, high, log, y.fromZero && y.scale !== "log");
    const [first, last] = across[0] < across[1] ? across : padded(...across, x.log, false);
    return { x: axisOf(first, last, EDGE.left, width - EDGE.right, x.log), y: axisOf(low, high, height - EDGE.bottom, EDGE.top, log) };
  }

  draw() {
    [this.width, this.height] = [this.box.clientWidth || 560, this.box.clientHeight || 240];
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.all.hidden = !this.view.x && !this.view.y;
    this.tip.hidden = true;
    this.drawLegend();
    this.axis = this.axes();
    if (!this.axis) {
      this.picture.replaceChildren(drawn("text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, this.content.empty));
      return;
    }
    const { left, right, top, bottom } = EDGE, clip = `clip${Chart.count = (Chart.count || 0) + 1}`, { x, y } = this.axis;
    const area = { x: left, y: top, width: Math.max(1, this.width - left - right), height: Math.max(1, this.height - top - bottom) };
    const defs = drawn("clipPath", { id: clip }), inner = drawn("g", { "clip-path": `url(#${clip})` });
    defs.append(drawn("rect", area));
    inner.append(...this.healthy(x, y), ...this.shown(this.content.bands).map((band) => bandPath(x, y, band)),
      ...this.shown(this.content.lines).flatMap((line) => linePath(x, y, line)),
      ...this.content.marks.map((mark) => drawn("path", { class: `event ${mark.meaning}`, d: SHAPES[mark.meaning],
        transform: `translate(${x.at(mark.x).toFixed(1)} ${y.at(mark.y).toFixed(1)})` })).filter((mark) => !/NaN/.test(mark.getAttribute("transform"))));
    this.pointer = drawn("path", { class: "pointer" });
    this.chosen = drawn("rect", { class: "chosen" });
    this.picture.replaceChildren(defs, ...this.grid(x, y), inner, this.pointer, this.chosen);
  }

  grid(x, y) {
    const { left, right, bottom } = EDGE, floor = this.height - bottom, parts = [];
    const text = (value, digits, format) => FORMATS[format](value, digits);
    for (const [value, digits] of y.log ? logTicks(y.low, y.high, 6) : ticks(y.low, y.high, 6)) {
      const at = y.at(value).toFixed(1);
      parts.push(drawn("path", { class: "grid", d: `M${left} ${at}H${this.width - right}` }),
        drawn("text", { x: left - 6, y: Number(at) + 3.5, "text-anchor": "end" }, text(value, digits, this.content.y.format)));
    }
    const most = Math.max(2, Math.floor((this.width - left) / 90)), { format } = this.content.x;
    const across = x.log ? logTicks(x.low, x.high, most) : ticks(x.low, x.high, most);
    parts.push(drawn("path", { class: "axis", d: `M${left} ${floor}H${this.width - right}` }));
    for (const [value, digits] of across.filter(([value]) => format !== "step" || Number.isInteger(value))) {
      const at = x.at(value).toFixed(1);
      parts.push(drawn("path", { class: "axis", d: `M${at} ${floor}v4` }),
        drawn("text", { x: at, y: floor + 16, "text-anchor": "middle" }, text(value, digits, format)));
    }
    return parts;
  }

  healthy(x, y) {
    const [low, high] = this.content.healthy || [null, null];
    if (low === null && high === null) return [];
    const [from, to] = [Math.max(low ?? -Infinity, y.low), Math.min(high ?? Infinity, y.high)];
    if (from >= to) return [];
    return [drawn("rect", { class: "healthy", x: EDGE.left, width: Math.max(1, this.width - EDGE.left - EDGE.right), y: y.at(to), height: y.at(from) - y.at(to) })];
  }

  drawLegend() {
    const named = [...new Map(this.content.lines.map((line) => [line.name, line])).values()];
    this.legend.replaceChildren(...(named.length < 2 ? [] : named.map((line) => {
      const item = make("button", "", { type: "button", "aria-pressed": String(!this.hidden.has(line.name)) });
      const key = drawn("svg", { viewBox: "0 0 22 8" });
      key.append(drawn("path", { class: "line", d: "M0 4H22", style: `--c: var(${line.colour})`, "stroke-dasharray": DASHES[line.dash] }));
      item.append(key, line.name);
      item.addEventListener("click", () => {
        this.hidden.delete(line.name) || this.hidden.add(line.name);
        this.draw();
      });
      return item;
    })));
  }

  // ---- pointer ----

  hear() {
    const here = (event) => { const box = this.picture.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    let from = null;
    this.picture.addEventListener("pointerdown", (event) => {
      if (event.button || !this.axis) return;
      from = here(event);
      this.picture.setPointerCapture(event.pointerId);
    });
    this.picture.addEventListener("pointermove", (event) => {
      if (!this.axis) return;
      if (from) this.choose(from, here(event));
      else this.tell(here(event));
    });
    this.picture.addEventListener("pointerup", (event) => {
      const start = from, end = here(event);
      from = null;
      if (!start) return;
      const [x, y] = this.choose(start, end);
      this.chosen.setAttribute("width", 0);
      if (x || y) this.zoom(x || this.view.x, y || this.view.y);
      else this.tell(end);
    });
    this.picture.addEventListener("pointercancel", () => { from = null; this.chosen?.setAttribute("width", 0); });
    this.picture.addEventListener("pointerleave", () => { this.tip.hidden = true; this.pointer?.setAttribute("d", ""); });
    this.picture.addEventListener("dblclick", () => this.zoom(null, null));
  }

  // Marks what a drag chooses; returns its horizontal and vertical range, each null if the drag does not choose one.
  choose([x0, y0], [x1, y1]) {
    const wide = Math.abs(x1 - x0), tall = Math.abs(y1 - y0), { left, right, top, bottom } = EDGE;
    const both = wide >= CLEAR && tall >= CLEAR, across = both || wide >= Math.max(DRAGGED, tall), up = both || (!across && tall >= DRAGGED);
    const hold = (value, low, high) => Math.min(Math.max(value, low), high);
    const [a, b] = across ? [x0, x1].map((v) => hold(v, left, this.width - right)).sort((p, q) => p - q) : [left, this.width - right];
    const [c, d] = up ? [y0, y1].map((v) => hold(v, top, this.height - bottom)).sort((p, q) => p - q) : [top, this.height - bottom];
    const marked = across || up;
    for (const [name, value] of Object.entries({ x: a, y: c, width: marked ? b - a : 0, height: d - c })) this.chosen.setAttribute(name, value);
    return [across && b > a ? [this.axis.x.value(a), this.axis.x.value(b)] : null, up && d > c ? [this.axis.y.value(d), this.axis.y.value(c)] : null];
  }

  zoom(x, y) {
    if (![x, y].every(isReadable)) return;
    const moved = String(x) !== String(this.view.x);
    this.view = { x, y };
    this.draw();
    if (moved) this.zoomed(x);
  }

  // The value of each line at the place of the pointer, and the events there.
  tell([px, py]) {
    const { x } = this.axis, lines = this.shown(this.content.lines), near = lines.map((line) => nearest(line, x, px)).filter(Boolean);
    const inside = px >= EDGE.left && px <= this.width - EDGE.right;
    this.tip.hidden = !near.length || !inside;
    this.pointer.setAttribute("d", "");
    if (this.tip.hidden) return;
    const best = near.reduce((a, b) => (Math.abs(b.at - px) < Math.abs(a.at - px) ? b : a));
    this.pointer.setAttribute("d", `M${best.at.toFixed(1)} ${EDGE.top}V${this.height - EDGE.bottom}`);
    const rows = near.filter((one) => Math.abs(one.at - best.at) < 12).map(({ line, n }) => {
      const row = make("div"), key = make("i", "", { style: `background: var(${line.colour})` });
      row.append(key, make("span", line.name), make("b", FORMATS[this.content.y.format](line.y[n], 5)));
      return row;
    });
    const events = this.content.marks.filter((mark) => Math.abs(x.at(mark.x) - px) < 7).slice(0, 4).map((mark) => make("div", mark.text, { class: "what" }));
    this.tip.replaceChildren(make("div", `${this.content.x.title} ${FORMATS[this.content.x.format](best.line.x[best.n], 6)}`, { class: "where" }), ...rows, ...events);
    const right = px > this.width / 2;
    Object.assign(this.tip.style, { left: right ? "auto" : `${px + 14}px`, right: right ? `${this.width - px + 14}px` : "auto", top: `${Math.max(0, Math.min(py, this.height - 20 * (rows.length + 2)))}px` });
  }
}

function padded(low, high, log, fromZero) {
  if (log) return [low / 1.15, high * 1.15];
  const base = fromZero ? Math.min(low, 0) : low, margin = 0.06 * (high - base) || 0.06 * Math.abs(high) || 1;
  return [fromZero && base === 0 ? 0 : base - margin, high + margin];
}

function nearest(line, x, px) {
  let best = null;
  for (let n = 0; n < line.x.length; n++) {
    const at = line.y[n] === null ? NaN : x.at(line.x[n]);
    if (at >= EDGE.left - 1 && (!best || Math.abs(at - px) < Math.abs(best.at - px))) best = { line, n, at };
  }
  return best;
}

// The `d` of a path; where a point has no place on the axes, the path has a gap.
function pathOf(x, y, xs, ys) {
  let text = "", gap = true;
  for (let n = 0; n < xs.length; n++) {
    const a = x.at(xs[n]), b = y.at(ys[n]);
    if (Number.isNaN(a + b)) gap = true;
    else { text += `${gap ? "M" : "L"}${a.toFixed(1)} ${b.toFixed(1)}`; gap = false; }
  }
  return text;
}

function linePath(x, y, line) {
  const style = `--c: var(${line.colour})`;
  const path = drawn("path", { class: "line", d: pathOf(x, y, line.x, line.y), style, "stroke-dasharray": DASHES[line.dash] });
  const dots = line.dots || line.x.length === 1 ? line.x.map((value, n) => [x.at(value), y.at(line.y[n])]).filter(([a, b]) => !Number.isNaN(a + b)) : [];
  return [path, ...dots.map(([cx, cy]) => drawn("circle", { class: "dot", cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2.4, style }))];
}

function bandPath(x, y, band) {
  const floor = (values) => (y.log ? values.map((value) => (value > 0 ? value : y.low)) : values);
  const edge = pathOf(x, y, [...band.x, ...band.x.slice().reverse()], [...floor(band.high), ...floor(band.low).slice().reverse()]);
  return drawn("path", { class: "band", d: edge && `${edge}Z`, style: `--c: var(${band.colour})` });
}
