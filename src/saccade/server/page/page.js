// The page: asks the server once a second, and hands what it says to the charts and the models.

import { Told, json, keepToken } from "/page/api.js";
import { Charts } from "/page/charts.js";
import { showModels } from "/page/models.js";
import { setModels, start } from "/page/picture.js";

const EVERY_MS = 1000;
const $ = (id) => document.getElementById(id);
const charts = new Charts($("charts"));
let known = ""; // which models and states the list on show is of

function report(error) {
  const told = $("told");
  told.hidden = error === null;
  if (error === null) return;
  const lines = error instanceof Told ? error.lines : [`This page met a fault of its own: ${error.message}.`];
  told.replaceChildren(
    ...lines.map((line) => {
      const part = document.createElement("p");
      part.textContent = line;
      return part;
    }),
  );
  if (error.status === 401) askForToken();
  if (!(error instanceof Told)) throw error;
}

function askForToken() {
  $("token-form").hidden = false;
  $("token").focus();
}

function state(text, kind) {
  const chip = $("connection");
  if (chip.textContent !== text) chip.textContent = text; // said aloud only when it changes
  chip.className = `chip ${kind}`;
}

function since(seconds) {
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [name, size] = units.find(([, size]) => seconds >= size) || units[3];
  const count = Math.floor(seconds / size);
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}

async function ask() {
  if (document.hidden) return;
  try {
    const told = await json("/page/live");
    const up = `up ${since(told.uptime_s)}`;
    $("server").textContent = `version ${told.saccade}, ${up}, ${told.engines.length} engine process${told.engines.length === 1 ? "" : "es"}`;
    state(told.is_ready ? "ready" : told.is_draining ? "going down" : "starting", told.is_ready ? "good" : "");
    charts.add(told);
    const now = told.models.map((model) => `${model.name}:${model.version}:${model.key}:${model.state}`).join();
    if (now !== known) {
      const { models } = await json("/page/models");
      showModels($("models"), models);
      setModels(newest(models));
      known = now;
    }
    $("token-form").hidden = true;
  } catch (error) {
    if (!(error instanceof Told)) throw error;
    if (error.status === 401) {
      state("needs a token", "bad");
      askForToken();
    } else {
      state("not answering", "bad");
    }
    charts.gap();
  }
}

// Of each name the version that answers when none is asked for.
function newest(models) {
  const found = new Map();
  for (const model of models) {
    const before = found.get(model.name);
    if (!before || (before.state !== "READY" && model.state === "READY")) found.set(model.name, model);
  }
  return [...found.values()];
}

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken($("token").value);
  $("token").value = "";
  report(null);
  ask();
});
start(report);

async function forever() {
  const begun = performance.now();
  await ask();
  setTimeout(forever, Math.max(100, EVERY_MS - (performance.now() - begun)));
}
forever();
document.addEventListener("visibilitychange", ask);
