// The server, as this page knows it. Errors carry the server's own sentence.

let key = sessionStorage.getItem('pave-key') || '';

export const hasKey = () => key !== '';
export function setKey(value) {
  key = value;
  sessionStorage.setItem('pave-key', value);
}

export class ServerError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, options = {}) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError('The server does not answer. Is pave serve still running?', 0, 'gone');
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const told = body.error || {};
  throw new ServerError(told.message || `The server answered ${response.status}.`, response.status, told.code);
}

const json = async (path, options) => (await request(path, options)).json();
const post = (body, signal) => ({ method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal });

export async function models() {
  const { data } = await json('/v1/models');
  const base = data.find((model) => model.parent === null);
  const patches = data.filter((model) => model.parent !== null);
  return { base: base.id, patches: patches.map((model) => ({ name: model.id, channels: model.side_channels })) };
}

export function upload(file) {
  const form = new FormData();
  form.set('purpose', 'user_data');
  form.set('file', file, file.name);
  return json('/v1/files', { method: 'POST', body: form });
}

export const fileFacts = (id) => json(`/v1/files/${encodeURIComponent(id)}`);
export const fileContent = async (id) => (await request(`/v1/files/${encodeURIComponent(id)}/content`)).blob();
export const inspect = (body, signal) => json('/v1/pave/inspect', post(body, signal));

/** Ask, and be told each piece of the answer as it comes. Resolves to what the server says about the answer. */
export async function ask(body, onText, signal) {
  const response = await request('/v1/chat/completions', post({ ...body, stream: true }, signal));
  let about = {};
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return about;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message, 200, event.error.code);
    const piece = event.choices[0]?.delta.content;
    if (piece) onText(piece);
    if (event.pave) about = { ...event.pave, finish: event.choices[0].finish_reason };
  }
  throw new ServerError('The answer broke off: the connection was closed.', 0, 'gone');
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line.startsWith('data: ')) yield line.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
