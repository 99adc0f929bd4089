// A sweep from JSON: what would be tried, and launching it.
"use strict";

const form = document.getElementById("sweep-form");
const text = document.getElementById("sweep-json");
const said = document.getElementById("sweep-said");

function problem(sentence) {
  said.replaceChildren(epochd.make("p", { className: "problem" }, sentence));
  text.setAttribute("aria-invalid", "true");
}

let isBusy = false;

async function send(address, act) {
  let wanted;
  if (isBusy) return;
  text.removeAttribute("aria-invalid");
  try {
    wanted = JSON.parse(text.value);
  } catch (error) {
    problem(`This is no JSON: ${error.message}`);
    return;
  }
  isBusy = true;
  let answer = null;
  try {
    answer = await epochd.post(address, wanted);
  } catch (error) {
    problem(error.message);
  } finally {
    isBusy = false;
  }
  if (answer) act(answer);
}

document.getElementById("sweep-plan").addEventListener("click", () => send("/sweeps?dry_run=true", (plan) => {
  const shown = plan.trials.slice(0, 20).map((trial) => epochd.make("li", {},
    Object.entries(trial.parameters).map(([name, value]) => `${name} = ${JSON.stringify(value)}`).join(", ")));
  const rungs = plan.rungs.map((rung) => `${rung.trials} for ${rung.epochs} ${rung.epochs === 1 ? "epoch" : "epochs"}`).join(", then ");
  said.replaceChildren(
    epochd.make("p", {}, `${plan.trials.length} trials${rungs ? `: ${rungs}` : ""}.`),
    epochd.make("ol", {}, ...shown),
    plan.trials.length > 20 ? epochd.make("p", { className: "muted" }, `and ${plan.trials.length - 20} more`) : "");
}));

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send("/sweeps", (sweep) => {
    isBusy = true; // until the other page is there
    location.assign(`/ui/sweeps/${sweep.id}`);
  });
});
