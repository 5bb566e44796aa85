"use strict";
// Asks one question after the other and keeps the votes in the browser. Texts go into the page as text, never as HTML.

const { comparison, questions } = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const KEY = `triaxial-comparison-${comparison}`;
const CHOICES = { 1: "left", arrowleft: "left", 2: "right", arrowright: "right", t: "tie", 0: "tie", s: "skip" };

const state = { labeller: "", votes: [], shownAt: 0, isKept: true }; // votes: { choice, seconds }, one for each question

// ---- storage: the votes of each labeller, and who was the last ------------------------------------------------------

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key) || "null");
  } catch {
    notKept();
    return null;
  }
}

function votesOf(labeller) {
  const kept = read(`${KEY}:${labeller}`);
  return Array.isArray(kept) && kept.length <= questions.length ? kept : [];
}

function keep() {
  try {
    localStorage.setItem(KEY, JSON.stringify(state.labeller));
    localStorage.setItem(`${KEY}:${state.labeller}`, JSON.stringify(state.votes));
  } catch {
    notKept();
  }
}

function notKept() {
  state.isKept = false;
  say("This browser does not keep the votes. Save them (E) before you close the page.");
}

const say = (text) => (at("problem").textContent = text);

// ---- the file of votes ----------------------------------------------------------------------------------------------

function ranking(question, vote) {
  const better = { left: [1, 2], right: [2, 1], tie: [1, 1] }[vote.choice];
  const side = (answer, rank) => ({ text: answer.text, rank, id: answer.id });
  return {
    prompt: question.prompt, completions: [side(question.left, better[0]), side(question.right, better[1])],
    labeller: state.labeller, prompt_id: question.prompt_id, comparison, seconds: vote.seconds,
  };
}

function lines() {
  const voted = state.votes.map((vote, i) => [questions[i], vote]).filter(([, vote]) => vote.choice !== "skip");
  return voted.map(([question, vote]) => JSON.stringify(ranking(question, vote)) + "\n").join("");
}

function save() {
  const text = lines(); // without the skipped questions
  if (!text) return void say("There is no vote to save yet.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  link.download = `votes-${state.labeller.replace(/[^\p{L}\p{N}_-]+/gu, "-")}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  say("");
}

// ---- the question ---------------------------------------------------------------------------------------------------

function fill(element, text) {
  element.textContent = text.trim() ? text : "(no text)";
  element.classList.toggle("empty", !text.trim());
}

function turn(role, text) {
  const parts = [];
  if (role) parts.push(Object.assign(document.createElement("h3"), { textContent: role }));
  const body = Object.assign(document.createElement("div"), { className: "text" });
  fill(body, text);
  return [...parts, body];
}

function showPrompt(prompt) {
  const turns = typeof prompt === "string" ? [["", prompt]] : prompt.map(({ role, content }) => [role, content]);
  at("prompt").replaceChildren(...turns.flatMap(([role, text]) => turn(turns.length > 1 ? role : "", text)));
  at("prompt").scrollTop = 0;
}

function showAnswer(id, text) {
  fill(at(id).querySelector(".text"), text);
  at(id).scrollTop = 0;
}

function show() {
  const n = state.votes.length, isDone = n === questions.length;
  at("start").hidden = true;
  at("keys").hidden = false;
  at("ask").hidden = isDone;
  at("done").hidden = !isDone;
  at("keys").classList.toggle("over", isDone);
  at("count").textContent = isDone ? `${n} of ${n}` : `question ${n + 1} of ${questions.length}`;
  at("bar").style.width = `${(100 * n) / (questions.length || 1)}%`;
  at("bar").parentElement.setAttribute("aria-valuemax", questions.length);
  at("bar").parentElement.setAttribute("aria-valuenow", n);
  if (isDone) return;
  showPrompt(questions[n].prompt);
  showAnswer("left", questions[n].left.text);
  showAnswer("right", questions[n].right.text);
  scrollTo(0, 0);
  state.shownAt = performance.now();
}

function vote(choice) {
  if (state.votes.length === questions.length) return;
  const seconds = Math.round((performance.now() - state.shownAt) / 100) / 10;
  state.votes.push({ choice, seconds });
  keep();
  show();
}

function undo() {
  if (!state.votes.length) return;
  state.votes.pop();
  keep();
  show();
}

function press(key) {
  if (CHOICES[key]) vote(CHOICES[key]);
  else if (key === "u" || key === "backspace") undo();
  else if (key === "e") save();
  else return false;
  return true;
}

// ---- the start ------------------------------------------------------------------------------------------------------

function begin() {
  const name = at("labeller").value.trim();
  if (!name) {
    say("Give your name first.");
    return void at("labeller").focus();
  }
  say("");
  state.labeller = name;
  state.votes = votesOf(name);
  keep();
  at("labeller").blur();
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (!at("start").hidden) {
    if (event.key === "Enter") begin();
  } else if (press(event.key.toLowerCase())) event.preventDefault();
});
for (const button of document.querySelectorAll("footer button"))
  button.addEventListener("click", () => {
    button.blur(); // else the space bar and Enter would press it again
    press(button.dataset.key);
  });
at("begin").addEventListener("click", begin);
addEventListener("beforeunload", (event) => {
  if (!state.isKept && state.votes.length) event.preventDefault();
});

function greet() {
  const n = votesOf(at("labeller").value.trim()).length;
  at("kept").textContent = n
    ? `${n} of ${questions.length} questions are answered; you continue where you stopped.`
    : `${questions.length} questions. Keys: 1 and 2 choose, T is a tie, S skips, U undoes, E saves the file.`;
}

at("labeller").value = String(read(KEY) || "");
at("labeller").addEventListener("input", greet);
at("count").textContent = `${questions.length} questions`;
at("labeller").focus();
greet();
