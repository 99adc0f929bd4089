// The page of all datasets: an archive is chosen or dropped, and its upload can be watched.
"use strict";

const form = document.getElementById("upload-form");
const part = Object.fromEntries(["archive", "archive-zone", "archive-said", "archive-wrong", "upload-name", "upload-button", "upload-stop", "upload-progress", "upload-bytes", "upload-said", "upload-problem"].map((id) => [id, document.getElementById(id)]));
let archive = null, request = null, hasOwnName = false;

const mib = (bytes) => (bytes < 2 ** 20 ? `${Math.ceil(bytes / 2 ** 10)} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`);

function choose(file) {
  if (!file) return;
  archive = file;
  part["archive-said"].textContent = `${file.name} (${mib(file.size)})`;
  tell(part["archive-wrong"], part.archive, "");
  if (hasOwnName) return;
  const stem = file.name.toLowerCase().replace(/\.(zip|tar|tgz|tar\.gz|gz)$/, "");
  part["upload-name"].value = stem.replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
}

function tell(place, control, sentence) {
  place.textContent = sentence;
  place.hidden = !sentence;
  control.setAttribute("aria-invalid", String(Boolean(sentence)));
}

/** What goes beside the archive: only what differs from what it would be anyway. Null: something is not right. */
function described() {
  const { name, task, image_size: size, channels, test_fraction: fraction, strict } = form.elements;
  const sides = size.value.split(/[,x×]/).map((each) => each.trim()).filter(Boolean).map(Number);
  const found = { name: name.value.trim() };
  if (task.value !== "classification") found.task = task.value;
  if (sides.length) found.image_size = sides.length === 1 ? sides[0] : sides;
  if (channels.value) found.channels = channels.value;
  if (fraction.value) found.test_fraction = Number(fraction.value);
  if (strict.checked) found.strict = true;
  const wrong = {
    "upload-name": found.name ? "" : "Give it a name.",
    "upload-image_size": sides.every(Number.isInteger) ? "" : "Write one side, or height and width with a comma between them.",
    "upload-test_fraction": fraction.validity.badInput ? "This is not a number." : "",
  };
  for (const [id, sentence] of Object.entries(wrong)) tell(document.getElementById(`${id}-wrong`), document.getElementById(id), sentence);
  tell(part["archive-wrong"], part.archive, archive ? "" : "Choose an archive.");
  const first = form.querySelector("[aria-invalid=true]");
  reveal(first);
  return first ? null : found;
}

function reveal(control) {
  if (!control) return;
  const folded = control.closest("details");
  if (folded) folded.open = true;
  control.focus();
}

function send(fields) {
  const body = new FormData();
  body.append("dataset", JSON.stringify(fields)); // first, so that it is refused before gigabytes have come
  body.append("archive", archive);
  request = new XMLHttpRequest();
  request.open("POST", "/datasets");
  request.setRequestHeader("Accept", "application/json");
  request.responseType = "json";
  request.upload.addEventListener("progress", (event) => {
    part["upload-progress"].value = event.total ? event.loaded / event.total : 0;
    part["upload-bytes"].textContent = `${mib(event.loaded)} of ${mib(event.total)}`;
    if (event.loaded === event.total) part["upload-said"].textContent = "All is sent; the service puts it away.";
  });
  request.addEventListener("load", () => ended(request.status, request.response));
  request.addEventListener("error", () => ended(0, null));
  request.addEventListener("abort", () => { busy(false); part["upload-said"].textContent = "The upload was stopped."; });
  busy(true);
  request.send(body);
}

function busy(isBusy) {
  part["upload-button"].disabled = isBusy;
  part["upload-stop"].hidden = !isBusy;
  part["upload-progress"].hidden = !isBusy;
  part["upload-progress"].value = 0;
  part["upload-bytes"].textContent = "";
  part["upload-problem"].hidden = true;
  if (isBusy) part["upload-said"].textContent = "Uploading …";
}

function ended(status, answer) {
  busy(false);
  part["upload-said"].textContent = "";
  if (status === 401) location.assign("/ui/key?next=/ui/datasets");
  else if (status >= 200 && status < 300) location.assign(`/ui/datasets/${answer.name}?version=${answer.version}`);
  else refused(status ? answer : { detail: "The connection broke off before all had arrived. Is the service running?" }, status);
}

function refused(problem, status) {
  const rest = [];
  for (const each of problem?.errors ?? []) {
    const id = `upload-${each.pointer.split("/")[1]}`, place = document.getElementById(`${id}-wrong`);
    const sentence = /^[a-z]/.test(each.detail) ? `This ${each.detail}` : each.detail;
    if (place) tell(place, document.getElementById(id), sentence);
    else rest.push(`${each.pointer.slice(2)}: ${each.detail}`);
  }
  const first = form.querySelector("[aria-invalid=true]");
  const said = rest.length ? rest.join(" ") : problem?.detail ?? `The service answered with ${status}.`;
  part["upload-problem"].textContent = said;
  part["upload-problem"].hidden = Boolean(first) && !rest.length;
  reveal(first);
}

part.archive.addEventListener("change", () => choose(part.archive.files[0]));
part["upload-name"].addEventListener("input", () => { hasOwnName = part["upload-name"].value !== ""; });
part["upload-stop"].addEventListener("click", () => request?.abort());
for (const kind of ["dragenter", "dragover"]) {
  form.addEventListener(kind, (event) => { event.preventDefault(); part["archive-zone"].classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) form.addEventListener(kind, () => part["archive-zone"].classList.remove("over"));
form.addEventListener("drop", (event) => {
  event.preventDefault();
  choose(event.dataTransfer.files[0]);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const fields = described();
  if (fields) send(fields);
});
window.addEventListener("beforeunload", (event) => { if (part["upload-stop"].hidden === false) event.preventDefault(); });
