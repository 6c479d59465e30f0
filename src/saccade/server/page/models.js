// The list of models: what each is, how it runs, and the figures that let it through its gate.

export function showModels(place, models) {
  if (!models.length) {
    const empty = document.createElement("p");
    empty.className = "soft";
    empty.textContent = "This server was started without models. Load one over the repository API, or start it with one.";
    place.replaceChildren(empty);
    return;
  }
  place.replaceChildren(...models.map(card));
}

function card(model) {
  const made = element("article", "card model");
  const head = element("div", "model-head");
  const title = element("h3", "", model.name);
  const kind = { READY: "good", UNAVAILABLE: "bad" }[model.state] || "";
  head.append(title, element("span", "soft", `version ${model.version}`), element("span", `chip ${kind}`, model.state.toLowerCase()));
  made.append(head);
  const list = element("dl", "facts");
  for (const [name, value] of facts(model)) if (value) list.append(element("dt", "", name), element("dd", "", value));
  made.append(list);
  const table = gateTable(model.gate);
  if (table) made.append(table);
  return made;
}

function* facts(model) {
  yield ["why", model.reason];
  if (!model.plan) return;
  const { plan, contract, created } = model;
  yield ["runs in", `${plan.backend} ${plan.precision} on ${plan.device}; batch ${plan.batch}, ${plan.streams} x ${plan.threads} threads`];
  if (contract) {
    const [height, width] = contract.size_hw;
    const labels = contract.labels.slice(0, 6).join(", ") + (contract.labels.length > 6 ? ` and ${contract.labels.length - 6} more` : "");
    const classes = contract.num_classes === 1 ? "1 class" : `${contract.num_classes || "an unknown number of"} classes`;
    yield ["finds", `${classes}${labels ? ` (${labels})` : ""} at ${width} x ${height}, ${contract.family} head`];
  } else {
    yield ["takes", `tensors only: ${model.why_no_detector || "no detection head"}`];
  }
  yield ["gate", verdict(model)];
  yield ["measured", created ? speed(created) : ""];
  yield ["built", created && created.at ? created.at : ""];
  yield ["notes", [...model.mismatches, ...model.fallbacks.map((one) => `${one.what} is ${one.got}, not ${one.wanted}`)].join("; ")];
  yield ["digest", model.digest ? model.digest.slice(0, 16) : ""];
}

function verdict(model) {
  if (!model.gate) return "none: this is a bare network, nobody compared its answers. A bundle of 'saccade build' brings figures.";
  const found = model.gate.verdict;
  if (!found) return "the bundle holds no verdict";
  const key = found.judged_by === "AP" ? "AP" : "agreement";
  const value = found.metrics[key];
  const drop = (found.drops || {})[key];
  const parts = [`${found.passed ? "passed" : "NOT passed"} on ${found.num_pictures} pictures`];
  if (value !== undefined && value !== null) parts.push(`${key} ${value.toFixed(4)}`);
  if (found.reference[key] !== undefined && found.reference[key] !== null) parts.push(`reference ${found.reference[key].toFixed(4)}`);
  if (drop) parts.push(`drop ${signed(drop.value)} (95 % ${signed(drop.low)} to ${signed(drop.high)})`);
  const reasons = [...(found.reasons || []), ...(found.warnings || [])].map((one) => one.text);
  return [parts.join(", "), ...reasons].join("; ");
}

function speed(created) {
  const here = created.speed;
  if (!here || !here.pictures_per_s || !here.pictures_per_s.length) return "";
  const rate = median(here.pictures_per_s);
  const there = created.reference_speed && created.reference_speed.pictures_per_s ? median(created.reference_speed.pictures_per_s) : 0;
  const times = there ? `, ${(rate / there).toFixed(2)} times the FP32 reference` : "";
  return `${rate.toFixed(1)} pictures/s where it was built${times}`;
}

function gateTable(gate) {
  const found = gate && gate.verdict;
  if (!found || !found.metrics) return null;
  const details = element("details");
  details.append(element("summary", "", "Every figure of the gate"));
  const table = element("table");
  const head = element("tr");
  for (const [i, name] of ["figure", "reference", "this bundle", "drop", "95 % interval", "limit"].entries()) head.append(element("th", i ? "n" : "", name));
  const body = element("tbody");
  const limits = { ...((gate.limits || {}).max_drop || {}) };
  for (const [name, value] of Object.entries(found.metrics)) {
    const drop = (found.drops || {})[name];
    const row = element("tr");
    const cells = [
      name.replace(/^class:/, ""),
      fixed((found.reference || {})[name]),
      fixed(value),
      drop ? signed(drop.value) : "-",
      drop ? `${signed(drop.low)} to ${signed(drop.high)}` : "-",
      limits[name] === undefined ? "" : String(limits[name]),
    ];
    for (const [i, text] of cells.entries()) row.append(element("td", i ? "n" : "", text));
    body.append(row);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  details.append(table);
  return details;
}

function element(kind, name = "", text = "") {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

function fixed(value) {
  return typeof value === "number" ? value.toFixed(4) : "-";
}

function signed(value) {
  return typeof value === "number" ? `${value < 0 ? "-" : "+"}${Math.abs(value).toFixed(4)}` : "-";
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
