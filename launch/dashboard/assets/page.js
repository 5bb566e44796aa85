"use strict";
// Shows the runs that runs.json describes. Every text from a run goes into the page as text, never as HTML.

const inFile = JSON.parse(document.getElementById("data").textContent); // null if a server gives the data
const LOOK_MS = 2000, MAX_RUNS_CHOSEN = 12, SHOWN_SAMPLES = 8, SHOWN_EVENTS = 40;
const COLOURS = ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5", "--s6"];

const state = { runs: [], chosen: new Set(), figures: [], extra: [], cache: new Map(), zoom: new Map() };
const at = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function make(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// ---- data -----------------------------------------------------------------------------------------------------------

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function seriesOf(run, name, range) {
  if (inFile) return inFile.series[run][name] || { step: [], value: [] };
  const key = JSON.stringify([run, name, range, state.runs[run].version]);
  if (!state.cache.has(key)) {
    if (state.cache.size > 400) state.cache.clear();
    const part = range ? `&first=${range[0]}&last=${range[1]}` : "";
    state.cache.set(key, await get(`series.json?run=${run}&name=${encodeURIComponent(name)}&points=1000${part}`));
  }
  return state.cache.get(key);
}

function interpolated(steps, values, wanted) {
  if (!steps.length) return wanted.map(() => null);
  let i = 0;
  return wanted.map((step) => {
    while (i < steps.length - 2 && steps[i + 1] < step) i++;
    if (steps.length === 1) return values[0] * (step / (steps[0] || 1));
    const [a, b] = [steps[i], steps[i + 1]];
    return values[i] + ((values[i + 1] - values[i]) * (step - a)) / (b - a || 1);
  });
}

function horizontal(run, steps) {
  const axis = at("axis").value, { clock, tokens, flops_per_token } = state.runs[run];
  if (axis === "step") return steps;
  if (axis === "hours") return interpolated(clock.step, clock.seconds.map((s) => s / 3600), steps);
  const seen = interpolated(tokens.step, tokens.tokens, steps);
  return axis === "tokens" ? seen : seen.map((n) => (n === null || !flops_per_token ? null : n * flops_per_token));
}

function smoothed(values) {
  const keep = Number(at("smooth").value);
  if (!keep) return values;
  let mean = 0, weight = 0; // an exponential moving average whose first values do not lean to zero
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

// ---- figures --------------------------------------------------------------------------------------------------------

const scaled = (figure, values) => (figure.divisor === 1 ? values : values.map((value) => value / figure.divisor));

function lineOf(run, name, series, look, figure) {
  const words = state.runs[run].labels[name] ?? name;
  const lone = state.runs.length > 1 ? state.runs[run].name : words;
  return {
    x: horizontal(run, series.step), y: smoothed(scaled(figure, series.value)),
    name: state.runs.length > 1 && look.names > 1 ? `${state.runs[run].name}: ${words}` : lone,
    colour: look.colour, dash: look.dash, dots: series.step.length <= 60 && /^(validation|few_shot)/.test(name),
  };
}

function bandOf(run, series, look, figure, line) {
  if (!series.low || Number(at("smooth").value)) return [];
  return [{ name: line.name, x: line.x, low: scaled(figure, series.low), high: scaled(figure, series.high), colour: look.colour }];
}

function marks(run, series, figure) {
  const events = state.runs[run].events.filter((event) => event.about !== null && event.meaning !== "checkpoint");
  const inside = events.filter((event) => event.about >= series.step[0] && event.about <= series.step.at(-1)).slice(-300);
  if (!at("faults").checked || !inside.length || series.step.length < 2) return [];
  const steps = inside.map((event) => event.about), values = scaled(figure, interpolated(series.step, series.value, steps));
  const x = horizontal(run, steps);
  return inside.map((event, n) => ({ x: x[n], y: values[n], meaning: event.meaning,
    text: `step ${event.about.toLocaleString("en")}: ${event.text || event.kind}`.slice(0, 160) }));
}

// The background of healthy values; none if the runs have different bands.
function healthy(figure) {
  const found = [...state.chosen].flatMap((run) => figure.names.map((name) => state.runs[run].bands[name]).filter(Boolean));
  return found.length && found.every((one) => String(one) === String(found[0])) ? found[0] : null;
}

function looks(run, i, names) {
  const several = state.runs.length > 1;
  return { colour: COLOURS[(several ? run : i) % COLOURS.length], dash: several ? i % DASHES.length : 0, names };
}

// Memory has the unit of its largest value, as on the page of one run.
function chooseUnit(figure, found) {
  const memory = figure.number === "memory";
  const largest = memory ? Math.max(0, ...found.flatMap(({ series }) => series.high || series.value)) : 0;
  const [unit, divisor] = memory ? (largest >= 2 ** 30 ? ["GiB", 2 ** 30] : ["MiB", 2 ** 20]) : ["", 1];
  figure.divisor = divisor;
  figure.heading.textContent = unit ? `${figure.title}, ${unit}` : figure.title;
}

const AXES = { step: ["step", "step"], tokens: ["tokens", "count"], hours: ["hours", "plain"], flops: ["FLOPs", "count"] };

async function draw(figure) {
  const range = at("axis").value === "step" && !inFile ? state.zoom.get(figure.title) : undefined, asked = [];
  for (const run of state.chosen) {
    const names = figure.names.filter((name) => state.runs[run].metrics.includes(name));
    for (const [i, name] of names.entries()) asked.push({ run, i, name, look: looks(run, i, names.length) });
  }
  const series = await Promise.all(asked.map(({ run, name }) => seriesOf(run, name, range)));
  const found = asked.map((one, n) => ({ ...one, series: series[n] })).filter(({ series }) => series.step.length);
  chooseUnit(figure, found);
  const lines = found.map(({ run, name, series, look }) => lineOf(run, name, series, look, figure));
  const [title, format] = AXES[at("axis").value];
  figure.chart.show({
    lines, bands: found.flatMap(({ run, series, look }, n) => bandOf(run, series, look, figure, lines[n])),
    marks: found.flatMap(({ run, i, series }) => (i === 0 ? marks(run, series, figure) : [])), healthy: healthy(figure),
    x: { log: at("logx").checked, title, format },
    y: { scale: at("values").value, format: figure.number === "memory" ? "plain" : figure.number, fromZero: figure.from_zero },
    empty: state.chosen.size ? `not known in ${title}s for this run`.replace("ss ", "s ") : "no run is chosen",
  });
}

function zoomed(figure, range) {
  if (range) state.zoom.set(figure.title, [Math.max(0, Math.floor(range[0])), Math.ceil(range[1])]);
  else state.zoom.delete(figure.title);
  if (!inFile) draw(figure).catch(told);
}

// The picture as a file that stands alone, with the colours that it has now.
function save(figure) {
  const copy = figure.chart.picture.cloneNode(true), look = document.querySelector("style").textContent.match(/svg text[^}]*}|svg\.chart[^}]*}/g);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.prepend(drawn("style", {}, look.join(" ")));
  const text = copy.outerHTML.replace(/var\((--(?!c\b)\w+)\)/g, (_, name) => colour(name));
  const link = make("a", "", { download: `${figure.heading.textContent}.svg`, href: URL.createObjectURL(new Blob([text], { type: "image/svg+xml" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function addFigure(title, look) {
  const box = make("figure"), plot = make("div", "", { class: "plot" }), heading = make("h3", title), top = make("figcaption");
  const picture = make("button", "save picture", { type: "button", class: "save" });
  top.append(heading, picture);
  box.append(top, plot);
  at("figures").append(box);
  const figure = { title, heading, ...look, divisor: 1 };
  figure.chart = new Chart(plot, (range) => zoomed(figure, range));
  picture.addEventListener("click", () => save(figure));
  state.figures.push(figure);
  return figure;
}

function planFigures() {
  const wanted = new Map();
  for (const run of state.runs)
    for (const { title, names, ...look } of run.figures)
      if (names.length) wanted.set(title, { ...look, names: [...new Set([...(wanted.get(title)?.names || []), ...names])] });
  const extra = state.extra.map((name) => [name, { names: [name], number: "plain", from_zero: false }]);
  for (const [title, look] of [...wanted, ...extra]) {
    const known = state.figures.find((figure) => figure.title === title);
    if (known) known.names = look.names;
    else addFigure(title, look);
  }
}

// All at once: what one figure waits for does not keep the others waiting.
const drawAll = () => Promise.all(state.figures.map(draw));

function resetZoom() {
  state.zoom.clear();
  for (const figure of state.figures) figure.chart.view = { x: null, y: null };
}

// ---- facts ----------------------------------------------------------------------------------------------------------

// Numbers stay on one line, and long texts get room; other words break only if they are wider than their cell.
const shape = (cell) => (/^-?[\d.,]+\S*( \S+)?$/.test(cell) ? "number" : cell.length > 24 ? "long" : "");

function table(head, rows) {
  const made = make("table"), box = make("div", "", { class: "scroll" });
  const top = make("tr");
  for (const text of head) top.append(make("th", text, { class: "word" }));
  made.append(top);
  for (const { cells, mark } of rows) {
    const row = make("tr", "", mark ? { class: mark } : {});
    for (const cell of cells) row.append(make("td", cell, { class: `value ${shape(cell)}` }));
    made.append(row);
  }
  box.append(made);
  return box;
}

function fill(id, title, note, ...parts) {
  at(id).replaceChildren();
  if (!parts.length) return;
  at(id).append(make("h2", title), make("p", note, { class: "note" }), ...parts);
}

const chosenRuns = () => [...state.chosen].sort((a, b) => a - b).map((run) => [run, state.runs[run]]);
const titled = (run, more) => (state.runs.length > 1 ? `${run.name}${more ? `: ${more}` : ""}` : more);

function showTiles() {
  const runs = chosenRuns(), several = state.runs.length > 1;
  const problems = runs.flatMap(([, run]) => run.problems.map((text) => make("p", titled(run, text), { class: "problem" })));
  at("tiles").replaceChildren(...problems, ...(several ? [comparison(runs)] : runs.flatMap(([i, run]) => tiles(i, run))));
}

function wholeReport(i) {
  return inFile ? "" : make("a", "whole report", { href: `report.html?run=${i}` });
}

function tiles(i, run) {
  const note = make("p", `${run.directory} \u00b7 ${run.status} `, { class: "note" }), box = make("div", "", { class: "tiles" });
  note.append(wholeReport(i));
  for (const [what, value, more] of run.tiles) {
    const tile = make("div");
    tile.append(make("span", what), make("b", value), make("span", more));
    box.append(tile);
  }
  return [note, box];
}

function comparison(runs) {
  const names = [...new Set(runs.flatMap(([, run]) => run.tiles.map(([what]) => what)))];
  const rows = runs.map(([, run]) => {
    const values = new Map(run.tiles.map(([what, value]) => [what, value]));
    return { cells: [run.name, run.status, ...names.map((name) => values.get(name) ?? "")] };
  });
  const box = table(["run", "status", ...names, ""], rows);
  box.querySelectorAll("tr").forEach((row, n) => n && row.append(document.createElement("td")));
  runs.forEach(([i], n) => box.querySelectorAll("tr")[n + 1].lastChild.append(wholeReport(i)));
  return box;
}

// One text of each of a few steps: the newest, and others spread over the run. The prompts take turns.
function spread(samples) {
  const byStep = new Map();
  for (const sample of samples) byStep.set(sample.step, [...(byStep.get(sample.step) || []), sample]);
  const all = [...byStep.values()], every = Math.ceil(all.length / SHOWN_SAMPLES);
  return all.filter((_, n) => (all.length - 1 - n) % every === 0).map((texts, n) => texts[n % texts.length]);
}

function showSamples() {
  const parts = [];
  for (const [i, run] of chosenRuns()) {
    for (const sample of spread(run.samples)) {
      const text = make("div", "", { class: `sample s${i % COLOURS.length}` });
      const written = sample.text.startsWith(sample.prompt) ? sample.text.slice(sample.prompt.length) : sample.text;
      text.append(make("b", sample.prompt), written);
      parts.push(make("h3", titled(run, `step ${sample.step.toLocaleString("en")}`)), text);
    }
  }
  fill("samples", "Samples", "Texts that the model wrote during training, spread over the run; the prompt comes first.", ...parts);
}

function picture(run) {
  const { tensor, pipeline, data, ranks } = run.layout, box = make("div", "", { class: "layout" });
  const grid = make("table"), rows = Math.min(data, 4), stages = Math.min(pipeline, 16), cells = Math.min(tensor, 8);
  for (let d = 0; d < rows; d++) {
    const row = make("tr");
    for (let p = 0; p < stages; p++)
      for (let t = 0; t < cells; t++) row.append(make("td", `${p * data * tensor + d * tensor + t}`));
    grid.append(row);
  }
  const cut = rows < data || stages < pipeline || cells < tensor ? " (a part of it)" : "";
  box.append(make("h3", `${titled(run, "") || ""} ${ranks} rank${ranks === 1 ? "" : "s"}`),
    make("p", `tensor ${tensor} x pipeline ${pipeline} x data ${data}${cut}`, { class: "note" }), grid);
  return box;
}

function showFaults() {
  const rows = chosenRuns().flatMap(([, run]) => run.faults.map((fault) =>
    ({ cells: [titled(run, ""), fault.fault, fault.when, fault.numbers, fault.advice] })));
  const trains = chosenRuns().some(([, run]) => Object.keys(run.bands).length);
  const note = rows.length ? "Faults that the metrics of the policy show; those that last come first." : "The metrics show no known fault.";
  fill("policy", "Policy", `${note} Green in a figure is the healthy band.`, ...(trains ? [rows.length ? table(["run", "fault", "when", "numbers", "what to try"], rows) : ""] : []));
}

function showEvents() {
  const rows = [];
  for (const [, run] of chosenRuns())
    for (const event of run.events.filter((one) => one.meaning !== "checkpoint").slice(-SHOWN_EVENTS))
      rows.push({ cells: [titled(run, ""), event.time, event.step === null ? "" : event.step.toLocaleString("en"), event.kind, event.text] });
  fill("events", "Faults, warnings and restarts", "The newest of each run.", ...(rows.length ? [table(["run", "time", "step", "kind", "what"], rows)] : []));
}

function showSettings() {
  const runs = chosenRuns().map(([, run]) => run);
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const rows = keys.map((key) => ({ key, values: runs.map((run) => run.config[key] ?? "") }));
  const different = rows.filter(({ values }) => new Set(values).size > 1);
  const shown = runs.length > 1 ? different : rows;
  const head = ["key", ...runs.map((run) => (runs.length > 1 ? run.name : "value"))];
  const note = runs.length > 1 ? `${different.length} of ${keys.length} settings differ between these runs.` : `${keys.length} settings.`;
  const parts = shown.length ? [table(head, shown.map(({ key, values }) => ({ cells: [key, ...values] })))] : [];
  fill("settings", "Configuration", note, ...(keys.length ? parts.length ? parts : [make("p", "They are the same.")] : []));
}

function showRuns() {
  at("runs").replaceChildren(...state.runs.map((run, i) => {
    const line = make("label", "", { class: `s${i % COLOURS.length}` }), box = make("input", "", { type: "checkbox" });
    box.checked = state.chosen.has(i);
    box.addEventListener("change", () => {
      box.checked ? state.chosen.add(i) : state.chosen.delete(i);
      show();
    });
    line.append(box, make("i"), run.name);
    return line;
  }));
}

function showMetrics() {
  const names = [...new Set(state.runs.flatMap((run) => run.metrics))].sort(), menu = at("more");
  if (menu.options.length === names.length + 1) return;
  menu.replaceChildren(make("option", "choose", { value: "" }), ...names.map((name) => make("option", name, { value: name })));
}

function show() {
  document.title = state.runs.length === 1 ? state.runs[0].name : `${state.runs.length} training runs`;
  document.querySelector("h1").textContent = document.title;
  if (state.runs.length > 1) showRuns();
  showMetrics();
  showTiles();
  showFaults();
  showSamples();
  fill("layouts", "Layout", "Each cell is a rank: a row for each copy of the model, a column for each part of it.",
    ...chosenRuns().map(([, run]) => picture(run)));
  showEvents();
  showSettings();
  planFigures();
  return drawAll().catch(told);
}

// ---- live -----------------------------------------------------------------------------------------------------------

function told(error) {
  at("state").textContent = `The server does not answer (${error.message}). Start triaxial report --serve again; this page shows what it had.`;
}

async function look() {
  const versions = await get("runs.json?versions");
  if (versions.some((version, i) => version !== state.runs[i]?.version)) {
    state.runs = await get("runs.json");
    await show();
  }
  at("state").textContent = `live, as of ${new Date().toLocaleTimeString()}`;
}

async function begin() {
  state.runs = inFile ? inFile.runs : await get("runs.json");
  state.chosen = new Set([...state.runs.keys()].filter((i) => i < MAX_RUNS_CHOSEN));
  await show();
  if (inFile) return void (at("state").textContent = "written to a file; it does not change");
  const again = () => look().catch(told).finally(() => setTimeout(again, document.hidden ? 5 * LOOK_MS : LOOK_MS));
  again();
}

for (const id of ["axis", "logx"]) at(id).addEventListener("change", () => {
  resetZoom();
  drawAll().catch(told);
});
for (const id of ["values", "faults"]) at(id).addEventListener("change", () => drawAll().catch(told));
at("smooth").addEventListener("input", () => {
  at("smoothed").textContent = at("smooth").value;
  drawAll().catch(told);
});
at("more").addEventListener("change", () => {
  const name = at("more").value;
  if (name && !state.extra.includes(name)) state.extra.push(name);
  show();
});
begin().catch(told);
