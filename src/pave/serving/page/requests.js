// From what is chosen on the page to the requests of its columns, and to code that sends the same.

/** Patches that act, with strengths. */
export const chosenPatches = (state) => state.patches.filter((patch) => state.uses[patch.name].on);

const uses = (state, patches) => patches.map((patch) => ({ name: patch.name, strength: state.uses[patch.name].strength }));

function sideFiles(state, patches) {
  const sides = {};
  for (const file of state.sides) {
    const [patch, channel] = file.to.split('.');
    if (patches.some((used) => used.name === patch)) sides[patch] = { ...sides[patch], [channel]: { url: file.id } };
  }
  return sides;
}

function withoutChannels(patches) {
  return Object.fromEntries(patches.map((patch) => [patch.name, Object.fromEntries(Object.keys(patch.channels).map((name) => [name, null]))]));
}

const named = (patches) => patches.map((patch) => patch.name).join(' + ');
const channelsOf = (patches) => [...new Set(patches.flatMap((patch) => Object.keys(patch.channels)))].join(', ');

/** The columns of answers: what each is called, what it means, and what its request says beside the question. */
export function columnsOf(state) {
  const patches = chosenPatches(state);
  const together = patches.length > 1 ? [{ id: 'together', title: 'Together', note: named(patches), kind: 'patch', patches }] : [];
  const channels = channelsOf(patches);
  const columns = [
    { id: 'base', title: 'Base', note: 'sees only', kind: 'base', patches: [] },
    ...patches.map((patch) => ({ id: `patch-${patch.name}`, title: patch.name, note: `and its ${channelsOf([patch])}`, kind: 'patch', patches: [patch] })),
    ...together,
  ];
  if (channels) {
    columns.push({ id: 'off', title: 'Channel off', note: `without ${channels}`, kind: 'check', patches, off: true });
    columns.push({ id: 'other', title: 'Other video', note: `its ${channels}`, kind: 'check', patches, other: true });
  }
  return columns;
}

/** The body of a chat request, for a column. */
export function bodyOf(state, column, question) {
  const content = [{ type: 'video_url', video_url: { url: state.current } }, { type: 'text', text: question }];
  const body = { model: state.base, messages: [{ role: 'user', content }] };
  if (!column.patches.length) return body;
  body.patches = uses(state, column.patches);
  const sides = column.off ? withoutChannels(column.patches) : sideFiles(state, column.patches);
  if (Object.keys(sides).length) body.side_channels = sides;
  if (column.other) body.counterfactual = { kind: 'swapped', video: { url: state.other } };
  return body;
}

/** Files that a body names, by id, with the names they had; the video first. */
function filesOf(state, body) {
  const known = [...state.videos, ...state.extras];
  const text = JSON.stringify(body);
  return known.filter((file) => text.includes(JSON.stringify(file.id))).sort((a, b) => (b.id === state.current) - (a.id === state.current));
}

function python(value, indent = 0) {
  const pad = ' '.repeat(indent + 4);
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value !== 'object') return JSON.stringify(value);
  if (value instanceof Raw) return value.text;
  const flat = Array.isArray(value)
    ? `[${value.map((item) => python(item)).join(', ')}]`
    : `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${python(item)}`).join(', ')}}`;
  if (flat.length + indent <= 96) return flat;
  const items = Array.isArray(value)
    ? value.map((item) => pad + python(item, indent + 4))
    : Object.entries(value).map(([key, item]) => `${pad}${JSON.stringify(key)}: ${python(item, indent + 4)}`);
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  return `${open}\n${items.join(',\n')},\n${' '.repeat(indent)}${close}`;
}

class Raw {
  constructor(text) { this.text = text; }
}

/** The value with the ids of files replaced. */
function replaced(value, names) {
  if (typeof value === 'string') return names[value] || value;
  if (value === null || typeof value !== 'object') return value;
  if (Array.isArray(value)) return value.map((item) => replaced(item, names));
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, replaced(item, names)]));
}

export function asPython(state, body, origin, hasKey) {
  const files = filesOf(state, body);
  const names = Object.fromEntries(files.map((file, number) => [file.id, new Raw(number ? `file_${number + 1}` : 'video')]));
  const opened = files.map((file) => `${names[file.id].text} = client.files.create(file=open(${JSON.stringify(file.name)}, "rb"), purpose="user_data").id`);
  const { model, messages, ...extra } = body;
  const key = hasKey ? 'os.environ["PAVE_KEY"]' : '"none"';
  const lines = [
    `    model=${JSON.stringify(model)},`,
    `    messages=${python(replaced(messages, names), 4)},`,
    ...(Object.keys(extra).length ? [`    extra_body=${python(replaced(extra, names), 4)},`] : []),
  ];
  return [
    ...(hasKey ? ['import os', ''] : []),
    'from openai import OpenAI', '',
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})`,
    ...opened, '',
    'answer = client.chat.completions.create(', ...lines, ')',
    'print(answer.choices[0].message.content)',
  ].join('\n');
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function asCurl(state, body, origin, hasKey) {
  const files = filesOf(state, body);
  const names = Object.fromEntries(files.map((file, number) => [file.id, number ? `FILE_${number + 1}` : 'VIDEO']));
  const key = hasKey ? ' -H "Authorization: Bearer $PAVE_KEY"' : '';
  const id = `python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])'`;
  const opened = files.map((file) => {
    const form = `file=@"${file.name.replaceAll('\\', '\\\\').replaceAll('"', '\\"')}"`;
    return `${names[file.id]}=$(curl -s ${origin}/v1/files${key} -F purpose=user_data -F ${quoted(form)} | ${id})`;
  });
  // the shell reads $, ` and \ in this document; JSON can write them in another way
  let text = JSON.stringify(body, null, 2).replace(/\\\\|[$`]/g, (found) => ({ '\\\\': '\\u005c', $: '\\u0024', '`': '\\u0060' })[found]);
  for (const [file, name] of Object.entries(names)) text = text.replaceAll(`"${file}"`, `"$${name}"`);
  return [...opened, `curl -s ${origin}/v1/chat/completions${key} -H 'Content-Type: application/json' -d @- <<END`, text, 'END'].join('\n');
}

/** The page's choices as the fragment of a link. */
export function toFragment(state) {
  const parts = new URLSearchParams();
  if (state.current) parts.set('video', state.current);
  if (state.question) parts.set('q', state.question);
  for (const patch of state.patches) if (state.uses[patch.name].on) parts.append('patch', `${patch.name}:${state.uses[patch.name].strength}`);
  for (const file of state.sides) parts.append('side', `${file.to}:${file.id}`);
  if (state.other) parts.set('other', state.other);
  if (state.frame !== null) parts.set('frame', String(state.frame + 1));
  return parts.toString();
}

const FILE = /^file-[0-9a-f]{32}$/;

/** What a fragment says; what cannot be meant is left out. */
export function fromFragment(text) {
  const parts = new URLSearchParams(text.replace(/^#/, ''));
  const file = (name) => (FILE.test(parts.get(name) || '') ? parts.get(name) : null);
  const pairs = (name) => parts.getAll(name).map((pair) => [pair.slice(0, pair.lastIndexOf(':')), pair.slice(pair.lastIndexOf(':') + 1)]);
  const frame = Number(parts.get('frame'));
  return {
    video: file('video'),
    other: file('other'),
    question: (parts.get('q') || '').slice(0, 2000),
    patches: pairs('patch').map(([name, strength]) => [name, Number(strength)]).filter(([, strength]) => strength >= 0 && strength <= 4),
    sides: pairs('side').filter(([to, id]) => /^\w+\.\w+$/.test(to) && FILE.test(id)),
    frame: Number.isInteger(frame) && frame > 0 ? frame - 1 : null,
  };
}
