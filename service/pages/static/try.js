// A picture is dropped, pasted, chosen or photographed, and sent to who is to say what it is.
"use strict";

const MOST_AT_ONCE = 40; // checkpoints that are asked without being told to
const MOST_LINES = 3;
const SIDE = 448; // of the picture as it is shown, in pixels
const at = (id) => document.getElementById(id);
const svg = "http://www.w3.org/2000/svg";

let picture = null; // {blob, name}
let kept = []; // the checkpoints of the job that answers
let turn = 0, curve = null;

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 || share < 0.0005 ? 2 : 1)} %`;
const rounded = (number) => (number === null ? "not a finite number" : String(Number(number.toPrecision(5))));
const who = () => at("who").selectedOptions[0];

/** Who is to answer, as parameters of /predict. */
function parameters(more) {
  const [kind, ...name] = who().value.split(":");
  const query = new URLSearchParams({ [kind]: name.join(":"), ...more });
  if (at("checkpoint").value && !more.checkpoint) query.set("checkpoint", at("checkpoint").value);
  if (at("auto-fix").checked) query.set("auto_fix", "true");
  return query;
}

function ask(query) {
  const body = new FormData();
  body.append("image", picture.blob, "picture");
  return epochd.ask(`/predict?${query}`, { method: "POST", body });
}

async function predict() {
  if (!picture) return;
  const number = ++turn, begun = performance.now();
  at("answer-said").textContent = "…";
  at("trajectory").hidden = true;
  at("trajectory-more").hidden = true;
  try {
    const answer = await ask(parameters({ top_k: 5 })), took = performance.now() - begun;
    if (number !== turn) return;
    show(answer, took);
    at("trajectory-more").hidden = kept.length <= MOST_AT_ONCE;
    if (kept.length > 1 && kept.length <= MOST_AT_ONCE) await follow();
  } catch (error) {
    if (number === turn) refused(error.message);
  }
}

function refused(sentence) {
  at("answer-said").textContent = "";
  at("answered-by").textContent = "";
  at("answer-problem").textContent = sentence;
  at("answer-problem").hidden = !sentence;
  at("answer").replaceChildren();
  at("warnings").replaceChildren();
}

function show(answer, took) {
  refused("");
  const [told] = answer.predictions;
  const best = told.top?.[0], values = Object.entries(told.values ?? {});
  at("answer-said").replaceChildren(...(best
    ? [epochd.make("strong", {}, epochd.make("bdi", {}, best.label)), `, ${percent(best.probability)}`]
    : [values.map(([name, value]) => `${name}: ${rounded(value)}`).join(" · ")]));
  at("answer").replaceChildren(...(best ? told.top.map(bar) : values.map(line)));
  const warned = told.warnings.map((each) => epochd.make("li", { className: "note" }, each));
  const fixed = told.fixed.map((each) => epochd.make("li", { className: "note fixed" }, each));
  at("warnings").replaceChildren(...warned, ...fixed);
  const job = epochd.make("a", { href: `/ui/jobs/${answer.job}` }, answer.job.slice(-8));
  at("answered-by").replaceChildren("Answered by epoch ", String(answer.checkpoint.epoch), " of job ", job, ` in ${Math.round(took)} ms.`);
}

function bar({ label, probability }) {
  const drawn = document.createElementNS(svg, "svg"), filled = document.createElementNS(svg, "rect");
  for (const [name, value] of [["class", "bar"], ["viewBox", "0 0 100 10"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) drawn.setAttribute(name, value);
  filled.setAttribute("width", (100 * probability).toFixed(2));
  filled.setAttribute("height", "10");
  drawn.append(filled);
  const made = epochd.make("li", {}, epochd.make("bdi", {}, label), epochd.make("span", { className: "num" }, percent(probability)), drawn);
  Object.assign(made.dataset, { label, probability });
  return made;
}

function line([name, value]) {
  const made = epochd.make("li", {}, epochd.make("bdi", {}, name), epochd.make("span", { className: "num" }, rounded(value)));
  Object.assign(made.dataset, { label: name, value });
  return made;
}

/** What every checkpoint says: of the classes that the last one finds likeliest, or each number. */
async function follow() {
  const number = turn;
  at("trajectory-more").hidden = true;
  const { epochs } = await ask(parameters({ checkpoint: "all", top_k: 1000 }));
  if (number !== turn || epochs.length < 2) return;
  const told = epochs.map((each) => each.predictions[0]), last = told.at(-1), isShare = Boolean(last.top);
  const values = isShare
    ? last.top.slice(0, MOST_LINES).map(({ label, class_index: index }) => [label, told.map((each) => each.top.find((guess) => guess.class_index === index)?.probability ?? null)])
    : Object.keys(last.values).map((name) => [name, told.map((each) => each.values[name])]);
  at("trajectory").hidden = false;
  curve ??= new Curve(at("trajectory"), [], isShare);
  curve.drop();
  curve.isShare = isShare;
  curve.lines = values.map(([label]) => ({ label }));
  curve.set([epochs.map((each) => each.checkpoint.epoch), ...values.map(([, column]) => column)]);
}

async function take(blob, name = "") {
  if (!blob) return;
  picture = { blob };
  predict();
  const canvas = at("picture");
  let bitmap = null;
  try { bitmap = await createImageBitmap(blob); } catch { /* not every browser shows every kind */ }
  if (picture.blob !== blob) return;
  canvas.hidden = !bitmap;
  at("picture-said").textContent = bitmap ? `${name} ${bitmap.width} × ${bitmap.height}` : `${name} cannot be shown by this browser; it was sent as it is.`;
  if (!bitmap) return;
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.classList.toggle("few", Math.max(bitmap.width, bitmap.height) < 128);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("aria-label", `The picture: ${name}, ${bitmap.width} by ${bitmap.height} pixels`);
  bitmap.close();
}

/** The checkpoints that can be chosen, and test pictures to begin with. */
async function choose(wanted = "") {
  const { job, dataset, version } = who().dataset, isAlias = who().value.startsWith("model:");
  const mine = who();
  const found = await epochd.ask(`/jobs/${job}/checkpoints`);
  if (mine !== who()) return;
  kept = found.data;
  const best = kept.find((each) => each.is_best), last = kept.at(-1);
  const options = [["", isAlias ? "its own" : `best${best ? ` (epoch ${best.epoch})` : ""}`], ...(isAlias ? [["best", `best (epoch ${best?.epoch})`]] : []), ["last", `last${last ? ` (epoch ${last.epoch})` : ""}`]];
  options.push(...kept.map(({ epoch }) => [String(epoch), `epoch ${epoch}`]));
  at("checkpoint").replaceChildren(...options.map(([value, text]) => epochd.make("option", { value }, text)));
  at("checkpoint").value = options.some(([value]) => value === wanted) ? wanted : "";
  showSamples(dataset, version);
}

async function showSamples(dataset, version) {
  const place = at("samples"), list = place.querySelector("ul");
  if (place.dataset.of === `${dataset} ${version}`) return;
  place.dataset.of = `${dataset} ${version}`;
  try {
    const query = new URLSearchParams({ split: "test", limit: 12, ...(version && { version }) });
    const found = await epochd.ask(`/datasets/${encodeURIComponent(dataset)}/pictures?${query}`);
    list.replaceChildren(...found.data.map(sample));
    place.hidden = !found.data.length;
  } catch {
    place.hidden = true; // the dataset is gone; own pictures can still be asked about
  }
}

function sample({ url, label, index }) {
  const name = `Test picture ${index}${label === null ? "" : `, ${label}`}`;
  const button = epochd.make("button", { type: "button", title: name }, epochd.make("img", { src: url, alt: name, loading: "lazy" }));
  button.addEventListener("click", async () => {
    try {
      take(await (await fetch(url)).blob(), `${name}:`);
    } catch {
      epochd.say("The picture cannot be fetched. Is the service running?");
    }
  });
  return epochd.make("li", {}, button);
}

/** The address says what is chosen, so that it can be kept and passed on. */
function note() {
  const [kind, ...name] = who().value.split(":");
  const query = new URLSearchParams({ [kind]: name.join(":") });
  if (at("checkpoint").value) query.set("checkpoint", at("checkpoint").value);
  history.replaceState(null, "", `/ui/try?${query}`);
}

async function changed(isAnother) {
  try {
    if (isAnother) await choose();
    note();
    await predict();
  } catch (error) {
    refused(error.message);
  }
}

function listen() {
  at("try-form").addEventListener("submit", (event) => event.preventDefault());
  at("who").addEventListener("change", () => changed(true));
  for (const id of ["checkpoint", "auto-fix"]) at(id).addEventListener("change", () => changed(false));
  for (const id of ["picture-input", "photo-input"]) {
    at(id).addEventListener("change", () => { const [file] = at(id).files; take(file, file?.name); at(id).value = ""; });
  }
  document.addEventListener("paste", (event) => { const [file] = event.clipboardData.files; take(file, file?.name); });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); at("drop-zone").classList.add("over"); });
  }
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, () => at("drop-zone").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    take(file, file?.name);
  });
  at("trajectory-button").addEventListener("click", () => follow().catch((error) => epochd.say(error.message)));
}

if (at("try-form")) {
  listen();
  choose(at("try-form").dataset.checkpoint).then(predict).catch((error) => refused(error.message));
}
