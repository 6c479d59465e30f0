// Requests to the server this page came from; whatever goes wrong comes back as an error in words.

const TOKEN = "saccade-token";

export class Told extends Error {
  // An error to show: lines of text, first what is wrong, then what to do.
  constructor(lines, status = 0) {
    super(lines.join(" "));
    this.lines = lines;
    this.status = status;
  }
}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

export async function call(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told(["The server does not answer.", "It may have stopped, or the network is down; this page tries again by itself."]);
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

async function problemOf(answer) {
  const wait = answer.headers.get("retry-after");
  const lines = [];
  try {
    const problem = await answer.json();
    // Messages say what must be, what is; and after the last semicolon what to do.
    const [, what, fix] = /^(.*); ([^;]+)$/s.exec(problem.detail) || [null, problem.detail || problem.error, ""];
    lines.push(`${problem.title || "The server refused"}: ${sentence(what)}`);
    if (fix) lines.push(`What to do: ${sentence(fix)}`);
  } catch {
    lines.push(`The server answered with status ${answer.status}, and not in words.`);
  }
  if (wait) lines.push(`It asks to wait ${wait} s.`);
  return new Told(lines, answer.status);
}

function sentence(text) {
  const plain = String(text || "no reason was given").trim();
  return /[.!?]$/.test(plain) ? plain : `${plain}.`;
}
