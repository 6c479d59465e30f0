// A picture to the server, its boxes drawn over it, and how long each stage took.

import { Told, call } from "/page/api.js";

const $ = (id) => document.getElementById(id);
const STAGES = [
  ["queue", "waiting", "var(--soft)"],
  ["decode", "decode", "var(--blue)"],
  ["prepare", "prepare", "var(--teal)"],
  ["infer", "infer", "var(--orange)"],
  ["suppress", "suppress", "var(--violet)"],
];
const FRAME_SIDE = 1280; // camera frames are sent no larger
const ROWS_SHOWN = 300;

let report = () => {};
let last = null; // the picture on show, to be asked again when a control changes
let current = null; // the request under way
let shownURL = "";
let camera = null;

export function start(onError) {
  report = onError;
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    const [file] = $("file").files;
    $("file").value = "";
    if (file) look(file);
  });
  $("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
  for (const id of ["model", "score", "iou"]) $(id).addEventListener("change", again);
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file) look(file);
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      $("stage").classList.add("is-over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("stage").classList.remove("is-over");
  });
  document.addEventListener("drop", (event) => {
    $("stage").classList.remove("is-over");
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    look(file);
  });
  $("rows").addEventListener("keydown", walkRows);
  for (const kind of ["focusin", "pointerover"]) $("rows").addEventListener(kind, (event) => mark(event.target));
  for (const kind of ["focusout", "pointerleave"]) $("rows").addEventListener(kind, () => mark(null));
}

export function setModels(models) {
  const select = $("model");
  const before = select.value;
  const able = models.filter((model) => model.contract);
  select.replaceChildren(
    ...able.map((model) => {
      const option = document.createElement("option");
      option.value = model.name;
      option.textContent = model.state === "READY" ? model.name : `${model.name} (${model.state.toLowerCase()})`;
      option.dataset.score = model.contract.detect.score;
      option.dataset.iou = model.contract.detect.iou;
      return option;
    }),
  );
  if (able.some((model) => model.name === before)) select.value = before;
  for (const id of ["choose", "camera", "model"]) $(id).disabled = able.length === 0;
  if (!able.length) $("summary").textContent = "No model here takes pictures.";
  showDefaults();
}

function showDefaults() {
  const option = $("model").selectedOptions[0];
  for (const id of ["score", "iou"]) $(id).placeholder = option ? option.dataset[id] : "";
}

function again() {
  showDefaults();
  if (last && !camera) look(last, false);
}

async function look(file, isNew = true) {
  if (camera) stopCamera();
  last = file;
  if (isNew) await show(file);
  $("view").classList.add("is-busy");
  try {
    const answer = await ask(file);
    draw(answer, file.name);
    if ($("picture").hidden) await showDrawn(file);
    report(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    clear();
    report(error);
  }
  $("view").classList.remove("is-busy");
}

async function show(file) {
  clear();
  if (shownURL) URL.revokeObjectURL(shownURL);
  shownURL = URL.createObjectURL(file);
  const picture = $("picture");
  picture.src = shownURL;
  picture.alt = file.name || "The picture";
  picture.hidden = false;
  $("frame").hidden = true;
  $("view").hidden = false;
  $("stage").classList.remove("is-empty");
  try {
    await picture.decode();
  } catch {
    picture.hidden = true; // the server may know this format all the same
  }
}

// What this browser has no decoder for, as the server draws it.
async function showDrawn(file) {
  const answer = await post(file, { format: "jpeg" });
  URL.revokeObjectURL(shownURL);
  shownURL = URL.createObjectURL(await answer.blob());
  $("picture").src = shownURL;
  $("picture").hidden = false;
}

function post(blob, more, signal) {
  const model = $("model").value;
  if (!model) throw new Told(["There is no model to ask.", "Start the server with a bundle or an ONNX file of a detector."]);
  const query = new URLSearchParams(more);
  for (const id of ["score", "iou"]) if ($(id).value !== "") query.set(id, $(id).value);
  const text = query.toString();
  return call(`/v2/models/${encodeURIComponent(model)}/detect${text ? `?${text}` : ""}`, {
    method: "POST",
    body: blob,
    headers: { "content-type": blob.type || "application/octet-stream" },
    signal,
  });
}

async function ask(blob) {
  if (current) current.abort();
  current = new AbortController();
  const begun = performance.now();
  const answer = await post(blob, {}, current.signal);
  const found = await answer.json();
  return { ...found, times: timesOf(answer.headers.get("server-timing")), round: performance.now() - begun };
}

// {stage: milliseconds} from a Server-Timing header.
function timesOf(text) {
  const times = {};
  for (const part of (text || "").split(",")) {
    const match = /^\s*([\w-]+)\s*;\s*dur=([\d.]+)/.exec(part);
    if (match) times[match[1]] = Number(match[2]);
  }
  return times;
}

function draw(answer, name) {
  const { width, height, detections } = answer;
  const isShown = !$("picture").hidden || !$("frame").hidden;
  $("boxes").replaceChildren(...(isShown ? detections.flatMap((one, index) => marksOf(one, index, width, height)) : []));
  const many = detections.length;
  const what = many === 0 ? "Nothing found" : many === 1 ? "1 box" : `${many} boxes`;
  const hint = many === 0 ? "; a lower score may show more" : "";
  const unseen = isShown ? "" : "; drawn by the server, as this browser cannot show such files";
  $("summary").textContent = `${what} in ${name || "the picture"} (${width} x ${height})${hint}${unseen}`;
  showTimes(answer.times, answer.round);
  list(detections);
}

function hue(index) {
  return `oklch(0.82 0.15 ${(index * 137.5 + 40) % 360})`;
}

function marksOf(one, index, width, height) {
  const [x1, y1, x2, y2] = one.box_xyxy;
  const box = document.createElement("div");
  box.className = y1 / height < 0.06 ? "box is-inside" : "box";
  box.dataset.index = index;
  place(box, { left: x1 / width, top: y1 / height, width: (x2 - x1) / width, height: (y2 - y1) / height });
  box.style.setProperty("--hue", hue(one.class));
  const label = document.createElement("b");
  label.textContent = `${one.label} ${one.score.toFixed(2)}`;
  box.append(label);
  const points = (one.keypoints_xy || []).map(([x, y]) => {
    const point = document.createElement("div");
    point.className = "point";
    point.style.setProperty("--hue", hue(one.class));
    place(point, { left: x / width, top: y / height });
    return point;
  });
  return [box, ...points];
}

function place(element, shares) {
  for (const [side, share] of Object.entries(shares)) element.style[side] = `${share * 100}%`;
}

function list(detections) {
  $("found").hidden = detections.length === 0;
  $("rows").replaceChildren(
    ...detections.slice(0, ROWS_SHOWN).map((one, index) => {
      const [x1, y1, x2, y2] = one.box_xyxy;
      const row = document.createElement("tr");
      row.tabIndex = index === 0 ? 0 : -1;
      row.dataset.index = index;
      const name = document.createElement("td");
      const key = document.createElement("i");
      key.style.setProperty("--hue", hue(one.class));
      name.append(key, one.label);
      row.append(name, ...[one.score.toFixed(3), `${x1.toFixed(0)}, ${y1.toFixed(0)}`, `${(x2 - x1).toFixed(0)}, ${(y2 - y1).toFixed(0)}`].map(number));
      return row;
    }),
  );
}

function number(text) {
  const cell = document.createElement("td");
  cell.className = "n";
  cell.textContent = text;
  return cell;
}

function walkRows(event) {
  const row = event.target.closest("tr");
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = step && row ? row[step] : null;
  if (!next) return;
  event.preventDefault();
  row.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function mark(target) {
  const row = target ? target.closest("tr") : null;
  for (const box of $("boxes").querySelectorAll(".box")) {
    box.classList.toggle("is-marked", row !== null && box.dataset.index === row.dataset.index);
  }
}

function showTimes(times, round) {
  const known = STAGES.filter(([key]) => key in times);
  const served = known.reduce((sum, [key]) => sum + times[key], 0);
  const parts = known.map(([key, name, color]) => [name, times[key], color]);
  parts.push(["network and browser", Math.max(0, round - served), "var(--line)"]);
  $("timing").hidden = false;
  $("timing-bar").replaceChildren(
    ...parts.map(([, ms, color]) => {
      const piece = document.createElement("span");
      piece.style.setProperty("--hue", color);
      piece.style.flexGrow = ms;
      return piece;
    }),
  );
  $("timing-list").replaceChildren(...parts.map(([name, ms, color]) => entry(`${name} ${ms.toFixed(1)} ms`, color)), entry(`round trip ${round.toFixed(1)} ms`));
}

function entry(text, color) {
  const item = document.createElement("li");
  if (color) {
    const key = document.createElement("i");
    key.style.setProperty("--hue", color);
    item.append(key);
  }
  item.append(text);
  return item;
}

function clear() {
  $("boxes").replaceChildren();
  $("found").hidden = true;
  $("timing").hidden = true;
  $("summary").textContent = "";
}

// The camera: one frame under way at a time, so that a slow server slows the frames, not the answers.

async function startCamera() {
  if (!navigator.mediaDevices) {
    report(new Told(["The camera can be used only on localhost or over HTTPS; this page came over plain HTTP.", "What to do: start the server with a certificate, or open it on the machine itself."]));
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: FRAME_SIDE } }, audio: false });
  } catch (error) {
    const why = { NotAllowedError: "permission was denied", NotFoundError: "there is none", NotReadableError: "another program uses it" }[error.name] || error.message;
    report(new Told([`The camera cannot be used: ${why}.`, "What to do: allow it in the browser's settings for this page, or drop a picture."]));
    return;
  }
  const video = document.createElement("video");
  video.srcObject = stream;
  video.muted = true;
  video.playsInline = true;
  await video.play();
  camera = { stream, video };
  clear();
  last = null;
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop the camera";
  $("picture").hidden = true;
  $("frame").hidden = false;
  $("view").hidden = false;
  $("stage").classList.remove("is-empty");
  run(camera);
}

function stopCamera() {
  for (const track of camera.stream.getTracks()) track.stop();
  camera = null;
  if (current) current.abort();
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Use the camera";
}

async function run(mine) {
  const frame = $("frame");
  const hidden = document.createElement("canvas");
  while (camera === mine) {
    const { videoWidth, videoHeight } = mine.video;
    const scale = Math.min(1, FRAME_SIDE / Math.max(videoWidth, videoHeight, 1));
    hidden.width = Math.max(1, Math.round(videoWidth * scale));
    hidden.height = Math.max(1, Math.round(videoHeight * scale));
    hidden.getContext("2d").drawImage(mine.video, 0, 0, hidden.width, hidden.height);
    const blob = await new Promise((done) => hidden.toBlob(done, "image/jpeg", 0.85));
    try {
      const answer = await ask(blob);
      if (camera !== mine) return;
      frame.width = hidden.width;
      frame.height = hidden.height;
      frame.getContext("2d").drawImage(hidden, 0, 0);
      draw(answer, "the camera's frame");
      report(null);
    } catch (error) {
      if (error.name === "AbortError" && camera !== mine) return;
      if (error.name !== "AbortError") {
        report(error);
        stopCamera();
        return;
      }
    }
    await new Promise(requestAnimationFrame);
  }
}
