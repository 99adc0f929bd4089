// The page of a new job: the form, the JSON that it makes, and what the job would be.
"use strict";

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
const COMMON = ["name", "dataset", "model", "optimizer", "batch_size", "epochs", "seed"];
const FOLDED = [
  ["Loss and schedule", ["loss", "schedule"]],
  ["Pictures", ["normalization", "augmentation"]],
  ["Steps", ["shuffle", "accumulation", "clip_gradient", "ema"]],
  ["Stopping and checkpoints", ["early_stopping", "checkpoints"]],
  ["Machine", ["precision", "device", "threads", "memory_limit_mb"]],
  ["Labels, priority, webhooks", ["labels", "priority", "webhooks"]],
];

const NOT_READY = "The pictures of this dataset are not prepared yet, so how large it will be is not known. The job can be submitted all the same: it begins when they are.";

const schema = JSON.parse(document.getElementById("schema").textContent);
Object.assign(DEFINED, schema.$defs);
const root = new Part(schema, "#");
const page = Object.fromEntries(["spec-form", "spec-fields", "spec-json", "by-hand", "plan", "plan-said", "plan-fields", "problems", "submit-job"].map((id) => [id, document.getElementById(id)]));
/** What was typed by hand; null while the form is used. */
let hand = null;
let sent = { text: null, key: null };
let datasets = JSON.parse(document.getElementById("known-datasets").textContent);
let asking = 0, waiting = null, planned = null;

function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < BYTES.length - 1) [bytes, unit] = [bytes / 1024, unit + 1];
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${BYTES[unit]}`;
}

const counted = (number) => number.toLocaleString("en");
const times = (number, word) => `${counted(number)} ${word}${number === 1 ? "" : "s"}`;

/** A name for a submission, so that one whose answer got lost can be sent again. */
function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID(); // not there on plain http
  return [...crypto.getRandomValues(new Uint8Array(16))].map((each) => each.toString(16).padStart(2, "0")).join("");
}

function arrange() {
  const fields = Object.fromEntries(root.fields), used = new Set(COMMON);
  const fold = (title, names) => {
    names.forEach((name) => used.add(name));
    const open = epochd.make("details", { className: "card" }, epochd.make("summary", {}, title), epochd.make("div", { className: "part" }, ...names.map((name) => fields[name].element)));
    open.addEventListener("fold", () => { open.open = true; });
    return open;
  };
  const common = epochd.make("div", { className: "card part" }, ...COMMON.map((name) => fields[name].element));
  const folded = FOLDED.map(([title, names]) => fold(title, names.filter((name) => name in fields)));
  const rest = Object.keys(fields).filter((name) => !used.has(name));
  page["spec-fields"].append(common, ...folded, ...(rest.length ? [fold("More", rest)] : []));
}

/** What is to be sent, and what is wrong with it already. */
function taken() {
  const problems = [];
  if (hand === null) return { value: root.value(problems) ?? {}, problems };
  if (hand.problem) problems.push({ pointer: "#json", detail: hand.problem });
  return { value: hand.parsed ?? {}, problems };
}

/** As it was typed, where that is JSON: long numbers stay as they are. */
function textOf(value) {
  if (hand !== null) {
    try { JSON.parse(hand.control.value); return hand.control.value; } catch { /* it was YAML */ }
  }
  return pretty(value);
}

function changed() {
  const { value, problems } = taken();
  if (hand === null) page["spec-json"].value = textOf(value);
  page["spec-json"].rows = Math.min(Math.max(page["spec-json"].value.split("\n").length + 1, hand ? 16 : 4), 28);
  const text = problems.length ? null : textOf(value);
  if (text !== null && text === planned) return;
  planned = text;
  clearTimeout(waiting);
  asking += 1; // answers on their way are of what it was before
  if (text === null) show(problems, "");
  else waiting = setTimeout(() => plan(text, asking), 350);
}

async function plan(text, number) {
  let told = null, failed = null;
  try {
    if (!(await isReady(JSON.parse(text)?.dataset))) return number === asking && show([], NOT_READY);
    told = await send("/jobs?dry_run=true", text);
  } catch (error) {
    failed = error;
  }
  if (number !== asking) return undefined;
  if (told) {
    show([], `${times(told.parameters, "weight")}, ${times(told.steps, "step")}, about ${size(told.memory.peak_bytes)} of memory.`);
    showPlan(told);
  } else if (failed.status === 409 || failed.status >= 500 || !failed.problem) {
    show([], failed.problem?.code === "not_ready" ? NOT_READY : failed.message);
  } else {
    show(problemsOf(failed), "");
  }
  return undefined;
}

/** Whether a plan can be asked for. What is not there, or a version, is left to the service to say. */
async function isReady(dataset) {
  if (dataset?.version) return true;
  const name = dataset?.name ?? schema.properties.dataset.default.name;
  const known = (data) => data.some((each) => each.name === name && each.status !== "ready");
  if (!known(datasets)) return true;
  datasets = (await epochd.ask("/datasets")).data; // it may have become ready meanwhile
  return !known(datasets);
}

function send(address, text, headers = {}) {
  return epochd.ask(address, { method: "POST", headers: { "Content-Type": "application/json", ...headers }, body: text });
}

function problemsOf(error) {
  const told = error.problem?.errors ?? [];
  return told.length ? told : [{ pointer: "", detail: error.message }];
}

function showPlan(told) {
  const { memory, fitting_micro_batch: fitting, available_bytes: available } = told;
  const values = [
    ["Weights", counted(told.parameters)],
    ["Steps", `${counted(told.steps_per_epoch)} an epoch, ${counted(told.steps)} in all`],
    ["Pictures at once", counted(told.micro_batch)],
    ["A checkpoint", size(told.checkpoint_bytes)],
    ["Memory, about", `${size(memory.peak_bytes)}${available === null ? "" : ` of ${size(available)}`}`],
    ["of it activations", size(memory.activations_bytes)],
  ];
  const list = epochd.make("dl", { className: "fields" }, ...values.map(([key, value]) => epochd.make("div", {}, epochd.make("dt", {}, key), epochd.make("dd", {}, value))));
  page["plan-fields"].replaceChildren(list);
  if (fitting !== null && fitting < told.micro_batch) {
    page["plan-fields"].append(epochd.make("p", { className: "note" }, fitting
      ? `Only some ${times(fitting, "picture")} at once will fit into the memory, so each batch will go through the network in parts. The step stays that of the whole batch; batch norm sees the parts.`
      : "Not even one picture at a time is expected to fit into the memory."));
  }
}

/** The field that a pointer means: itself, or the one around it, or the first one inside of it. */
function fieldAt(pointer) {
  const every = [...root.every()];
  const around = every.filter((each) => pointer === each.pointer || pointer.startsWith(`${each.pointer}/`));
  const inside = every.filter((each) => each.pointer.startsWith(`${pointer}/`) && pointer !== "#");
  return around.sort((one, other) => other.pointer.length - one.pointer.length)[0] ?? inside[0];
}

function show(problems, said) {
  if (page["plan-said"].textContent !== said) page["plan-said"].textContent = said;
  page["plan-fields"].replaceChildren();
  const of = new Map();
  const lines = problems.map(({ pointer, detail }) => {
    const field = hand === null ? fieldAt(pointer) : undefined;
    if (!field) return epochd.make("li", {}, pointer.length > 1 && pointer !== "#json" ? `${pointer.slice(2)}: ` : "", detail);
    const rest = pointer.slice(field.pointer.length + 1);
    of.set(field, [...(of.get(field) ?? []), rest ? `${rest}: ${detail}` : detail]);
    const link = epochd.make("a", { href: `#${field.control.id}` }, field.pointer.slice(2).replaceAll("/", "."));
    link.addEventListener("click", (event) => { event.preventDefault(); reveal(field); });
    return epochd.make("li", {}, link, `: ${rest ? `${rest}: ` : ""}${detail}`);
  });
  for (const field of root.every()) field.show(of.get(field)?.join(" "));
  const byHand = hand === null ? "" : problems.filter((each) => each.pointer === "#json").map((each) => each.detail).join(" ");
  document.getElementById("spec-json-wrong").textContent = byHand;
  document.getElementById("spec-json-wrong").hidden = !byHand;
  page["spec-json"].setAttribute("aria-invalid", String(Boolean(byHand)));
  page.problems.hidden = !problems.length;
  page.problems.replaceChildren(epochd.make("p", {}, problems.length === 1 ? "One thing is not right:" : `${problems.length} things are not right:`), epochd.make("ul", {}, ...lines));
}

function reveal(field) {
  field.element.closest("details")?.dispatchEvent(new CustomEvent("fold"));
  field.control.focus();
}

let isKept = false;

async function submit() {
  const { value, problems } = taken();
  if (problems.length) {
    show(problems, "");
    page.problems.focus();
    return;
  }
  const text = textOf(value);
  if (sent.text !== text) sent = { text, key: newKey() };
  clearTimeout(waiting);
  asking += 1;
  page["submit-job"].disabled = true;
  try {
    const job = await send("/jobs", text, { "Idempotency-Key": sent.key });
    sent = { text: null, key: null }; // who comes back to this page and submits it again means another job
    isKept = true;
    location.assign(`/ui/jobs/${job.id}`);
  } catch (error) {
    show(problemsOf(error), "");
    page.problems.focus();
  } finally {
    page["submit-job"].disabled = false;
  }
}

/** Fills the form in. Returns what it has no place for. */
function fill(spec) {
  const lost = [];
  root.reset();
  root.set(spec, lost);
  for (const open of page["spec-fields"].querySelectorAll("details.card")) if (open.querySelector(".changed")) open.open = true;
  return lost;
}

function editByHand(text) {
  hand = { control: page["spec-json"], parsed: undefined, problem: null };
  if (text !== undefined) hand.control.value = text;
  readStructure(hand, hand.control.value, changed);
  hand.control.readOnly = false;
  page["spec-form"].classList.add("by-hand");
  page["spec-fields"].hidden = true;
  page["by-hand"].textContent = "Back to the form";
  page["by-hand"].setAttribute("aria-pressed", "true");
  document.getElementById("spec-json-about").textContent = "JSON or YAML. What it does not say has the tutorial's value.";
}

function backToForm() {
  if (hand.problem) return show([{ pointer: "#json", detail: hand.problem }], "");
  const spec = hand.parsed ?? {}, text = hand.control.value;
  const lost = fill(spec);
  if (lost.length) {
    return show([{ pointer: "#json", detail: `The form has no place for ${lost.map((each) => each.slice(2) || "this").join(", ")}. It can be submitted from here as it is, or changed.` }], "");
  }
  hand.control.readOnly = true;
  hand = null;
  page["spec-form"].classList.remove("by-hand");
  page["spec-fields"].hidden = false;
  page["by-hand"].textContent = "Edit by hand";
  page["by-hand"].setAttribute("aria-pressed", "false");
  document.getElementById("spec-json-about").textContent = "What it does not say has the tutorial's value.";
  return text;
}

page["by-hand"].addEventListener("click", () => {
  if (hand === null) editByHand();
  else if (backToForm() === undefined) return;
  changed();
  (hand === null ? page["by-hand"] : hand.control).focus();
});
page["spec-form"].addEventListener("input", (event) => {
  if (hand !== null && event.target === hand.control) readStructure(hand, hand.control.value, changed);
  changed();
});
page["spec-form"].addEventListener("change", changed);
page["spec-form"].addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});

arrange();
const begun = document.getElementById("begin").textContent;
if (fill(JSON.parse(begun)).length) editByHand(begun);
changed();
const untouched = page["spec-json"].value;
window.addEventListener("beforeunload", (event) => {
  if (!isKept && page["spec-json"].value !== untouched) event.preventDefault(); // what was typed would be lost
});
