"use strict";
// Shows one text after the other and sends each answer to the server. Texts go into the page as text, never as HTML.

const { labeller, taxonomy, blur, ids, categories, parents } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const WINDOW = kept("window") || Math.random().toString(36).slice(2) + Date.now().toString(36);
const RETRY_MS = 1500;

// item: the text on the screen; marks: category id -> { value: 0, 1 or null, grade }; busy: an answer is under way
const state = { item: null, marks: {}, current: categories[0], busy: false, shown: false, seconds: 0, since: 0 };
keep("window", WINDOW);

// ---- small helpers ----------------------------------------------------------------------------------------------------

function kept(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key) || "null");
  } catch {
    return null;
  }
}

function keep(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch {
    // the browser keeps nothing: marks of a text that is not finished do not survive a reload
  }
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const say = (text) => Object.assign(at("problem"), { textContent: text, hidden: !text });
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// ---- the server -------------------------------------------------------------------------------------------------------

// Sends until the server has answered, so that no answer is lost while it or the disk is away.
async function ask(action, values = {}) {
  const body = JSON.stringify({ window: WINDOW, ...values });
  const how = { method: "POST", headers: { "Content-Type": "application/json" }, body, cache: "no-store" };
  for (;;) {
    let problem = "The server does not answer. Is the command still running?";
    try {
      const reply = await fetch(action, how);
      const found = await reply.json();
      if (reply.ok) return say(""), found;
      problem = found.problem || reply.statusText;
      if (reply.status === 409) return { conflict: problem };
      if (reply.status === 404) problem = "This address is no longer valid. Open the one that the command printed last.";
      if (reply.status < 500) return say(`Not saved: ${problem}`), null;
    } catch {
      // no connection, or an answer that was cut short: the server takes the same answer twice as one
    }
    say(`Not saved yet: ${problem} Trying again …`);
    await pause(RETRY_MS);
  }
}

async function act(action, values) {
  if (state.busy) return;
  state.busy = true;
  try {
    let found = await ask(action, values);
    const conflict = found && found.conflict;
    if (conflict) found = await ask("state");
    if (found) show(found);
    if (conflict) say(`Not saved: ${conflict}. Here is another text.`);
  } finally {
    state.busy = false;
  }
}

// ---- labels: from marks to values of all categories, where a parent is at least its child -----------------------------

function labels() {
  const found = Object.fromEntries(ids.map((id) => [id, 0]));
  for (const category of categories) {
    const { value, grade } = state.marks[category.id] || { value: 0 };
    if (!category.grades.length || value === null)
      for (const id of category.grades.length ? category.grades.map((one) => one.id) : [category.id]) found[id] = value;
    else for (const { id, from } of category.grades) found[id] = value && grade >= from ? 1 : 0;
  }
  for (const id of ids) // a parent of a positive category is positive, of an unsure one not certainly negative
    for (let up = parents[id]; up; up = parents[up])
      if (found[id] === 1) found[up] = 1;
      else if (found[id] === null && found[up] === 0) found[up] = null;
  return found;
}

function severities() {
  const graded = categories.filter(({ id, grades }) => grades.length && state.marks[id] && state.marks[id].value !== null);
  return Object.fromEntries(graded.map(({ id }) => [id, state.marks[id].grade]));
}

function marksOf(given, grades = {}) {
  const marks = {};
  for (const category of categories) {
    const { id } = category;
    if (given[id] === null) marks[id] = { value: null };
    else if (given[id] === 1 || grades[id] !== undefined) {
      const reached = category.grades.filter((one) => given[one.id] === 1).map((one) => one.from);
      marks[id] = { value: given[id], grade: grades[id] ?? Math.max(0, ...reached) };
    }
  }
  return marks;
}

const least = (category) => Math.min(...category.grades.map((one) => one.from));

function toggle(category, unsure) {
  const now = state.marks[category.id];
  state.current = category;
  if (unsure) now && now.value === null ? delete state.marks[category.id] : (state.marks[category.id] = { value: null });
  else if (now && now.value === 1) delete state.marks[category.id];
  else state.marks[category.id] = category.grades.length ? { value: 1, grade: least(category) } : { value: 1 };
  marked();
}

function setGrade(category, grade) {
  state.current = category;
  state.marks[category.id] = { value: grade >= least(category) ? 1 : 0, grade };
  marked();
}

function marked() {
  keep("draft", { id: state.item.id, marks: state.marks });
  showMarks();
}

// ---- what is on the screen --------------------------------------------------------------------------------------------

const rows = new Map();

function build() {
  const shown = new Set(categories.map(({ id }) => id));
  for (const category of categories) {
    const stateText = make("span", { className: "state" });
    const mark = make("button", { className: "mark" }, make("kbd", { textContent: category.key.toUpperCase() }),
      make("span", { className: "name", textContent: category.title || category.id }), stateText);
    mark.addEventListener("pointerdown", ({ pointerType }) => (mark.pressedBy = pointerType)); // not every click tells
    mark.addEventListener("pointercancel", () => (mark.pressedBy = "")); // the page scrolls: no click follows
    mark.addEventListener("click", ({ shiftKey }) => {
      const isTap = ["touch", "pen"].includes(mark.pressedBy), isMarked = [1, null].includes(state.marks[category.id]?.value);
      mark.pressedBy = "";
      mark.blur();
      if (state.item) toggle(category, shiftKey || (isTap && isMarked)); // fingers and pens have no Shift
    });
    const row = make("div", { className: "row" }, mark);
    row.classList.toggle("child", shown.has(category.parent));
    const grades = make("div", { className: "grades" });
    for (let grade = 0; category.grades.length && grade <= category.max_grade; grade++) {
      const button = make("button", { textContent: grade, title: `severity ${grade}` });
      button.addEventListener("click", () => (button.blur(), state.item && setGrade(category, grade)));
      grades.append(button);
    }
    if (category.grades.length) row.append(grades);
    rows.set(category.id, { row, mark, stateText, grades });
    at("categories").append(row);
  }
  at("who").textContent = `${labeller} · ${taxonomy}`;
  const keys = [...categories.map(({ key, title, id }) => [key.toUpperCase(), title || id, key ? "" : "tap"]),
    ["Shift", "unsure: the label stays unknown", " + letter, or tap twice"]];
  if (categories.some(({ grades }) => grades.length)) keys.push(["0", "severity of the category marked last", " to 9, or tap"]);
  keys.push(["Enter", "save and go on"], ["→", "skip"], ["←", "undo: back to the text before", " or Backspace"],
    ["Space", "show a blurred text"], [".", "blur texts, or stop blurring", " full stop"], ["?", "this help"]);
  for (const [key, meaning, more = ""] of keys)
    at("help-rows").append(make("tr", {}, make("td", {}, key && make("kbd", { textContent: key }), more), make("td", {}, meaning)));
}

function showMarks() {
  const found = labels();
  let n = 0;
  for (const category of categories) {
    const { row, mark, stateText, grades } = rows.get(category.id);
    const value = found[category.id], own = state.marks[category.id];
    const positive = category.grades.filter((one) => found[one.id] === 1 && one.id !== category.id).map((one) => one.id);
    n += value === 1;
    row.classList.toggle("yes", value === 1);
    row.classList.toggle("unsure", value === null);
    row.classList.toggle("current", category === state.current);
    mark.setAttribute("aria-pressed", value === null ? "mixed" : String(value === 1));
    stateText.textContent = value === null ? "unsure" : value === 1 ? ["yes", ...positive].join(", ") : "no";
    [...grades.children].forEach((button, grade) =>
      button.setAttribute("aria-pressed", String(Boolean(own) && own.value !== null && own.grade === grade)));
  }
  at("none").textContent = n ? "" : "no category is marked";
  at("next").textContent = n ? "save" : "none of these";
  showAbout();
}

function showAbout() {
  const parts = [];
  for (const one of state.current ? state.current.about : []) {
    parts.push(make("h2", { textContent: one.title && one.title !== one.id ? `${one.title} (${one.id})` : one.id }));
    for (const text of [one.definition, one.instructions]) if (text) parts.push(make("p", { textContent: text }));
    const items = one.examples.map(({ text, label, reason }) =>
      make("li", {}, make("b", { className: label ? "yes" : "", textContent: label ? "yes" : "no" }),
        make("div", {}, make("q", { textContent: text }), make("small", { textContent: reason || "" }))));
    if (items.length) parts.push(make("ul", {}, ...items));
  }
  at("about").replaceChildren(...parts);
}

function showBlur() {
  const isBlurred = Boolean(kept("blur") ?? blur) && !state.shown;
  document.body.classList.toggle("blurred", isBlurred);
  at("veiled").hidden = !isBlurred;
}

function left(seconds) {
  if (seconds === null) return "";
  if (seconds < 90) return `, about ${Math.max(1, Math.round(seconds / 10)) * 10} s left`;
  return seconds < 5400 ? `, about ${Math.round(seconds / 60)} min left` : `, about ${(seconds / 3600).toFixed(1)} h left`;
}

function showProgress({ done, left: n, skipped, seconds_left: seconds }) {
  at("count").textContent = `${done} of ${done + n}${n ? left(seconds) : ""}`;
  at("bar").style.width = `${(100 * done) / (done + n || 1)}%`;
  at("bar").parentElement.setAttribute("aria-valuemax", done + n);
  at("bar").parentElement.setAttribute("aria-valuenow", done);
  at("done-title").textContent = skipped ? "No other text is left." : "All texts are labelled. Thank you.";
  at("summary").textContent = `${done - skipped} labelled, ${skipped} skipped.`;
  at("again").hidden = !skipped;
}

function show(found) {
  const { item } = found, draft = kept("draft");
  showProgress(found);
  at("ask").hidden = !item;
  at("done").hidden = Boolean(item);
  at("keys").hidden = false;
  for (const action of ["skip", "next"]) document.querySelector(`[data-action="${action}"]`).hidden = !item;
  if (!item) at("none").textContent = "";
  const isSame = state.item && item && state.item.id === item.id;
  state.item = item;
  if (!item) return;
  state.marks = draft && draft.id === item.id ? draft.marks : item.labels ? marksOf(item.labels, item.severity) : {};
  if (isSame && !item.labels) return void showMarks();
  state.current = categories.find(({ id }) => state.marks[id]) || categories[0];
  at("text").textContent = item.text;
  at("text").scrollTop = 0;
  scrollTo(0, 0);
  [state.shown, state.seconds, state.since] = [false, 0, performance.now()];
  showBlur();
  showMarks();
}

// ---- actions and keys -------------------------------------------------------------------------------------------------

function seconds() {
  const now = document.hidden ? 0 : performance.now() - state.since; // time in another window does not count
  return Math.round((state.seconds + now) / 100) / 10;
}

const ACTIONS = {
  next: () => state.item && act("answer", { id: state.item.id, labels: labels(), severity: severities(), seconds: seconds() }),
  skip: () => state.item && act("answer", { id: state.item.id, skipped: true, seconds: seconds() }),
  undo: () => act("undo"),
  help: () => at("help").showModal(),
  reveal: () => ((state.shown = !state.shown), showBlur()),
  blur: () => (keep("blur", !(kept("blur") ?? blur)), (state.shown = false), showBlur()),
};
const KEYS = { Enter: "next", ArrowRight: "skip", ArrowLeft: "undo", Backspace: "undo", "?": "help", " ": "reveal", ".": "blur" };

function press(event) {
  if (KEYS[event.key]) return ACTIONS[KEYS[event.key]](), true;
  if (!state.item || state.busy) return false;
  if (/^[0-9]$/.test(event.key)) {
    const { current } = state;
    if (current && current.grades.length && Number(event.key) <= current.max_grade) setGrade(current, Number(event.key));
    return true;
  }
  // on a keyboard without Latin letters the position of the key counts
  const letter = /^[a-z]$/i.test(event.key) ? event.key.toLowerCase() : (/^Key([A-Z])$/.exec(event.code) || ["", ""])[1].toLowerCase();
  const category = letter && categories.find(({ key }) => key === letter);
  if (category) toggle(category, event.shiftKey);
  return Boolean(category);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at("help").open) return;
  if (press(event)) event.preventDefault();
});
for (const button of document.querySelectorAll("footer button"))
  button.addEventListener("click", () => {
    button.blur(); // else Space and Enter would press it again
    ACTIONS[button.dataset.action]();
  });
at("reveal").addEventListener("click", () => (at("reveal").blur(), ACTIONS.reveal()));
at("close-help").addEventListener("click", () => at("help").close());
at("ask-skipped").addEventListener("click", () => act("skipped"));
document.addEventListener("visibilitychange", () =>
  document.hidden ? (state.seconds += performance.now() - state.since) : (state.since = performance.now()));

build();
act("state");
