// The page: what is chosen, what was asked, and what came of it.

import * as api from './api.js';
import { $, el, notice, roving, seconds, size } from './dom.js';
import { createLanes, inspectorOf } from './lanes.js';
import { asCurl, asPython, bodyOf, chosenPatches, columnsOf, fromFragment, toFragment } from './requests.js';

const EXAMPLES = { playground: ['what sound is heard ?', 'which object moves when the bell sounds ?', 'which object moves first ?', 'what colour is the circle ?'] };
const VIDEO = /\.(mp4|m4v|mkv|webm|mov|avi)$/i;
const TAKES = { audio: /\.(wav|mp3|flac|ogg|opus|m4a|aac)$/i, sensor: /\.(csv|tsv)$/i, text: /\.(srt|vtt|json)$/i, scene3d: /\.zip$/i, views: /\.zip$/i, video: VIDEO, features: /\.safetensors$/i };
const OWN = ['audio', 'video'];

const state = {
  base: '', patches: [], uses: {},
  videos: [], extras: [], sides: [], current: null, other: null,
  question: '', answers: {}, asked: null, look: null, frame: null,
};
const video = $('video');
let time = 0, asking = null, looking = null;

/* ---------- the clock ---------- */

const lanes = createLanes({
  time: () => (video.hidden ? time : video.currentTime),
  seek(to) {
    time = Math.min(Math.max(0, to), Math.max(0, state.look.seconds - 0.001));
    if (!video.hidden) video.currentTime = time;
    lanes.tick();
  },
  toggle: () => (video.hidden ? null : video.paused ? video.play() : video.pause()),
  select(frame) {
    state.frame = state.frame === frame ? null : frame;
    if (state.frame !== null) this.seek(state.look.frames.times[frame]);
    showFrame();
  },
});

function follow() {
  lanes.tick();
  if (!video.paused) requestAnimationFrame(follow);
}
video.addEventListener('play', follow);
for (const moved of ['pause', 'seeking', 'seeked', 'loadeddata']) video.addEventListener(moved, lanes.tick);
video.addEventListener('error', () => {
  if (video.hidden || !video.src) return;
  video.hidden = true;
  notice($('file-notice'), 'This browser cannot play the video. The server reads it all the same: frames and lanes are below.', 'info');
});

const strengths = () => Object.fromEntries(state.patches.map((patch) => [patch.name, state.uses[patch.name].strength]));

function showFrame() {
  lanes.update({ frame: state.frame, strengths: strengths() });
  $('inspector').replaceChildren(...inspectorOf(state.look, state.frame, strengths(), () => {
    const frame = state.frame;
    state.frame = null;
    showFrame();
    document.querySelectorAll('.frame')[frame]?.focus();
  }));
}

/* ---------- files ---------- */

const channelsNow = () => chosenPatches(state).flatMap((patch) => Object.entries(patch.channels).map(([channel, kind]) => ({ to: `${patch.name}.${channel}`, kind })));
const pool = () => [...state.videos, ...state.extras];

async function addFiles(list) {
  const files = [...list], first = files.find((file) => VIDEO.test(file.name) || file.type.startsWith('video/'));
  if (!files.length) return;
  const fresh = [];
  for (const file of files) {
    notice($('file-notice'), `Sending ${file.name}, ${size(file.size)}.`, 'info');
    try {
      const { id } = await api.upload(file);
      const kept = { id, name: file.name };
      if (VIDEO.test(file.name) || file.type.startsWith('video/')) {
        state.videos.push({ ...kept, url: URL.createObjectURL(file) });
        if (file === first) fresh.unshift(id);
      } else {
        state.extras.push(kept);
        assign(kept);
      }
    } catch (error) {
      notice($('file-notice'), `${file.name}: ${error.message}`);
      return;
    }
  }
  notice($('file-notice'));
  const idle = state.extras.filter((file) => !state.sides.some((side) => side.id === file.id));
  if (idle.length) notice($('file-notice'), `${idle[0].name}: no chosen patch takes such a file.`, 'info');
  if (fresh.length) useVideo(fresh[0]);
  else if (state.current) look();
  showFiles();
}

/** The clip inside pave, for who has none at hand. */
async function addExample() {
  const response = await fetch('/page/whistle.mp4');
  await addFiles([new File([await response.blob()], 'whistle.mp4', { type: 'video/mp4' })]);
  $('question').focus();
}

/** A side file goes to the first channel that takes it and has none. */
function assign(file) {
  const free = channelsNow().find(({ to, kind }) => TAKES[kind]?.test(file.name) && !state.sides.some((side) => side.to === to));
  if (free) state.sides.push({ to: free.to, ...file });
}

function useVideo(id) {
  const chosen = state.videos.find((known) => known.id === id);
  if (!chosen) return;
  stop();
  Object.assign(state, { current: id, answers: {}, asked: null, look: null, frame: null });
  if (state.other === id) state.other = null;
  if (!state.other) state.other = state.videos.find((known) => known.id !== id)?.id || null;
  time = 0;
  video.hidden = false;
  video.src = chosen.url;
  $('clip-meta').textContent = chosen.name;
  lanes.show(null);
  showFiles();
  showAnswers();
  look();
}

function showFiles() {
  document.querySelector('.screen').classList.toggle('empty', !state.current);
  const several = state.videos.length > 1;
  const chips = (several ? state.videos : []).map((known) => el('button', {
    type: 'button', class: 'chip', role: 'radio', 'aria-checked': String(known.id === state.current), tabindex: known.id === state.current ? '0' : '-1', onclick: () => useVideo(known.id),
  }, known.name));
  roving(chips, (number) => { useVideo(state.videos[number].id); $('videos').children[number].focus(); });
  $('videos').replaceChildren(...chips);
  $('side-files').replaceChildren(...(state.current ? channelsNow() : []).map(({ to, kind }) => {
    const fitting = pool().filter((file) => TAKES[kind]?.test(file.name) && file.id !== state.current);
    if (!fitting.length) return null;
    const now = state.sides.find((side) => side.to === to)?.id || '';
    const options = [['', OWN.includes(kind) ? 'from the video' : 'none'], ...fitting.map((file) => [file.id, file.name])];
    const select = el('select', { 'aria-label': `File of ${to}`, onchange: (event) => {
      const file = pool().find((known) => known.id === event.target.value);
      state.sides = state.sides.filter((side) => side.to !== to);
      if (file) state.sides.push({ to, id: file.id, name: file.name });
      look();
      if (state.asked) ask();
    } }, options.map(([id, name]) => el('option', { value: id, selected: id === now }, name)));
    return el('li', {}, el('span', { class: 'name' }, to.replace('.', ': ')), select);
  }).filter(Boolean));
}

/* ---------- looking ---------- */

async function look() {
  looking?.abort();
  if (!state.current) return;
  const mine = looking = new AbortController();
  const column = columnsOf(state).findLast((one) => one.kind !== 'check');
  const question = state.asked || '?';
  // lanes show what a patch does as it was trained, and are scaled here when a slider moves
  const full = { ...state, uses: Object.fromEntries(state.patches.map((patch) => [patch.name, { ...state.uses[patch.name], strength: 1 }])) };
  $('lanes-meta').textContent = 'reading…';
  try {
    state.look = await api.inspect(bodyOf(full, column, question), mine.signal);
    if (!state.asked) for (const channel of state.look.channels) channel.gate = null;
    lanes.show(state.look);
    $('lanes-meta').textContent = state.asked ? `for “${state.asked}”` : 'the gate depends on the question';
    $('clip-meta').textContent = `${state.videos.find((known) => known.id === state.current).name}, ${seconds(state.look.seconds)}`;
    if (state.frame !== null && !state.look.frames.times[state.frame]) state.frame = null;
    showFrame();
  } catch (error) {
    if (error.name === 'AbortError') return;
    $('lanes-meta').textContent = '';
    refused(error, $('file-notice'));
  }
}

/* ---------- asking ---------- */

function stop() {
  asking?.abort();
  asking = null;
}

/** Ask all columns, or some of them while the others stand. */
async function ask(only = null) {
  const question = only ? state.asked : $('question').value.trim();
  state.question = question;
  if (!question) { notice($('ask-notice'), 'Write a question first.', 'info'); $('question').focus(); return; }
  if (!state.current) { notice($('ask-notice'), 'Drop a video first: the question is about it.', 'info'); return; }
  stop();
  notice($('ask-notice'));
  const mine = asking = new AbortController();
  state.asked = question;
  const wanted = columnsOf(state).filter((column) => (!only || only(column) || !state.answers[column.id]?.done) && !(column.other && !state.other));
  for (const column of wanted) state.answers[column.id] = { text: '', done: false, error: null };
  link();
  showAnswers();
  await Promise.all([only ? null : look(), ...wanted.map((column) => askColumn(column, question, mine))]);
  if (mine !== asking) return;
  asking = null;
  showAnswers();
  remember();
  const told = columnsOf(state).filter((column) => state.answers[column.id]?.done);
  $('answer-status').textContent = told.map((column) => `${column.title}: ${state.answers[column.id].text}.`).join(' ');
}

async function askColumn(column, question, mine) {
  const answer = state.answers[column.id], began = performance.now();
  try {
    answer.about = await api.ask(bodyOf(state, column, question), (piece) => {
      answer.text += piece;
      if (mine === asking) showAnswer(column);
    }, mine.signal);
    answer.done = true;
    answer.ms = performance.now() - began;
  } catch (error) {
    if (error.name === 'AbortError') return;
    answer.error = error.message;
    if (error.status === 401) refused(error, $('ask-notice'));
  }
  if (mine === asking) showAnswers();
}

function refused(error, place) {
  if (error.status === 401) {
    $('key-card').hidden = false;
    $('key').focus();
  } else notice(place, error.message, 'error', error.code === 'gone' ? { name: 'Try again', run: () => location.reload() } : null);
}

function tagOf(column, answer) {
  if (!answer.done) return '';
  const base = state.answers.base, tags = [];
  if (column.id !== 'base' && base?.done) tags.push(base.text === answer.text ? '= base' : '≠ base');
  if (answer.about.finish === 'length') tags.push('cut off');
  tags.push(`${Math.round(answer.ms)} ms`);
  return tags.join(' · ');
}

function answerOf(column) {
  const answer = state.answers[column.id];
  const parts = [el('h3', {}, column.title), el('p', { class: 'quiet-text' }, column.note)];
  if (column.other) parts.push(otherChoice());
  if (answer?.error) parts.push(el('p', { class: 'failed' }, answer.error));
  else if (answer) parts.push(el('p', { class: answer.text.length > 60 ? 'text long' : 'text' }, answer.text), el('p', { class: 'tag' }, tagOf(column, answer)));
  const busy = answer && !answer.done && !answer.error;
  return el('article', { class: `answer ${column.kind}-column ${busy ? 'busy' : ''}`, 'data-column': column.id, 'aria-busy': String(Boolean(busy)) }, parts);
}

function otherChoice() {
  const others = state.videos.filter((known) => known.id !== state.current);
  if (!others.length) return el('p', { class: 'quiet-text' }, 'Drop a second video to lend its own.');
  const options = others.map((known) => el('option', { value: known.id, selected: known.id === state.other }, known.name));
  return el('select', { 'aria-label': 'Video that lends its channel', onchange: (event) => { state.other = event.target.value; if (state.asked) ask((column) => column.other); } }, options);
}

function showAnswer(column) {
  document.querySelector(`[data-column="${CSS.escape(column.id)}"] .text`).textContent = state.answers[column.id].text;
}

function showAnswers() {
  const focused = document.activeElement?.closest?.('.answer select');
  $('answers').replaceChildren(...columnsOf(state).map(answerOf));
  $('answers').setAttribute('aria-busy', String(asking !== null));
  if (focused) $('answers').querySelector('select')?.focus();
  $('ask-button').textContent = asking ? 'Asking…' : 'Ask';
  showCode();
}

/* ---------- patches ---------- */

function showPatches() {
  $('model-line').textContent = state.patches.length ? `${state.base} with ${state.patches.length === 1 ? 'one patch' : `${state.patches.length} patches`}` : `${state.base}, without a patch: serve one with --patch NAME=FOLDER`;
  $('patches').replaceChildren(...state.patches.map((patch) => {
    const use = state.uses[patch.name];
    const told = el('output', { for: `strength-${patch.name}` }, shown(use.strength));
    const row = el('div', { class: use.on ? 'patch' : 'patch out' },
      el('label', {}, el('input', { type: 'checkbox', checked: use.on, onchange: (event) => { use.on = event.target.checked; row.classList.toggle('out', !use.on); changed(); } }), patch.name),
      el('input', { type: 'range', id: `strength-${patch.name}`, min: '0', max: '1', step: '0.05', value: String(use.strength), 'aria-label': `Strength of ${patch.name}, 0 is the base`,
        oninput: (event) => { use.strength = Number(event.target.value); told.textContent = shown(use.strength); showFrame(); },
        onchange: () => { showCode(); if (state.asked && use.on) ask((column) => column.patches.includes(patch) && !column.off); } }),
      told);
    return row;
  }));
}

const shown = (strength) => (strength === 0 ? 'base' : strength.toFixed(2));

/** Other patches act now. */
function changed() {
  state.sides = state.sides.filter((side) => channelsNow().some(({ to }) => to === side.to));
  for (const file of state.extras) if (!state.sides.some((side) => side.id === file.id)) assign(file);
  for (const id of ['together', 'off', 'other']) delete state.answers[id];
  showFiles();
  showAnswers();
  look();
  if (state.asked) ask((column) => ['together', 'off', 'other'].includes(column.id));
}

/* ---------- history, links, code ---------- */

const past = JSON.parse(sessionStorage.getItem('pave-past') || '[]');

function remember() {
  const answers = columnsOf(state).filter((column) => state.answers[column.id]?.done).map((column) => [column.title, state.answers[column.id].text]);
  const entry = { fragment: toFragment(state), question: state.asked, name: state.videos.find((known) => known.id === state.current).name, answers };
  const same = past.findIndex((one) => one.question === entry.question && one.name === entry.name);
  if (same >= 0) past.splice(same, 1);
  past.unshift(entry);
  past.length = Math.min(past.length, 30);
  sessionStorage.setItem('pave-past', JSON.stringify(past));
  showHistory();
}

function showHistory() {
  $('history').replaceChildren(...(past.length ? past.map((entry) => el('li', {}, el('button', { type: 'button', class: 'past', onclick: () => open(entry.fragment) },
    el('strong', {}, entry.question), el('span', { class: 'quiet-text' }, `${entry.name} · ${entry.answers.map(([title, text]) => `${title}: ${text}`).join(' · ')}`)))) : [el('li', { class: 'quiet-text' }, 'Questions stand here once they are answered; choose one to open it again.')]));
}

function link() {
  history.replaceState(null, '', `#${toFragment(state)}`);
}

/** Open what a link says, as far as the server still has the files. */
async function open(fragment) {
  const wanted = fromFragment(fragment);
  if (!wanted.video) return;
  stop();
  try {
    await Promise.all([...new Set([wanted.video, wanted.other, ...wanted.sides.map(([, id]) => id)])].filter(Boolean).map(fetchFile));
  } catch (error) {
    if (error.status === 404) notice($('file-notice'), 'A file of this link has expired on the server; drop it again.');
    else refused(error, $('file-notice'));
    return;
  }
  for (const patch of state.patches) {
    const use = wanted.patches.find(([name]) => name === patch.name);
    state.uses[patch.name] = { on: Boolean(use), strength: use ? use[1] : 1 };
  }
  state.other = wanted.other;
  state.sides = wanted.sides.map(([to, id]) => ({ to, id, name: pool().find((file) => file.id === id).name })).filter((side) => channelsNow().some(({ to }) => to === side.to));
  $('question').value = wanted.question;
  showPatches();
  useVideo(wanted.video);
  state.frame = wanted.frame;
  if (wanted.question) ask();
}

async function fetchFile(id) {
  if (pool().some((file) => file.id === id)) return;
  const facts = await api.fileFacts(id);
  if (VIDEO.test(facts.filename)) {
    const content = await api.fileContent(id);
    state.videos.push({ id, name: facts.filename, url: URL.createObjectURL(content.slice(0, content.size, '')) });
  } else state.extras.push({ id, name: facts.filename });
}

function showCode() {
  const columns = columnsOf(state).filter((column) => !column.other || state.other);
  const before = $('code-column').value;
  const chosen = columns.find((column) => column.id === before) || columns.findLast((column) => column.kind !== 'check');
  $('code-column').replaceChildren(...columns.map((column) => el('option', { value: column.id, selected: column === chosen }, column.title)));
  const known = { ...state, current: state.current || 'file-ID' };
  const write = $('code-language').value === 'curl' ? asCurl : asPython;
  $('code').textContent = write(state, bodyOf(known, chosen, $('question').value.trim() || 'What is heard?'), location.origin, api.hasKey());
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el('textarea', { class: 'visually-hidden' }, text);
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  const name = button.dataset.name || (button.dataset.name = button.textContent);
  button.textContent = 'Copied';
  setTimeout(() => { button.textContent = name; }, 1500);
}

/* ---------- beginning ---------- */

async function start() {
  try {
    Object.assign(state, await api.models());
  } catch (error) {
    refused(error, $('ask-notice'));
    return;
  }
  $('key-card').hidden = true;
  state.uses = Object.fromEntries(state.patches.map((patch) => [patch.name, { on: true, strength: 1 }]));
  $('examples').replaceChildren(...(EXAMPLES[state.base] || []).map((text) => el('button', { type: 'button', class: 'chip', onclick: () => { $('question').value = text; ask(); } }, text)));
  $('example').hidden = !EXAMPLES[state.base];
  showPatches();
  showFiles();
  showAnswers();
  showFrame();
  open(location.hash);
}

$('key-form').addEventListener('submit', (event) => { event.preventDefault(); api.setKey($('key').value.trim()); start(); });
$('ask-form').addEventListener('submit', (event) => { event.preventDefault(); ask(); });
$('question').addEventListener('input', showCode);
$('example').addEventListener('click', addExample);
$('file').addEventListener('change', (event) => { addFiles(event.target.files); event.target.value = ''; });
$('link-button').addEventListener('click', (event) => { state.question = $('question').value.trim(); link(); copy(location.href, event.currentTarget); });
$('code-button').addEventListener('click', (event) => copy($('code').textContent, event.currentTarget));
for (const id of ['code-language', 'code-column']) $(id).addEventListener('change', showCode);
addEventListener('dragover', (event) => { event.preventDefault(); document.body.classList.add('dragging'); });
addEventListener('dragleave', (event) => { if (!event.relatedTarget) document.body.classList.remove('dragging'); });
addEventListener('drop', (event) => { event.preventDefault(); document.body.classList.remove('dragging'); addFiles(event.dataTransfer.files); });
addEventListener('hashchange', () => open(location.hash));
addEventListener('keydown', (event) => {
  if (event.key === '/' && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) { event.preventDefault(); $('question').focus(); }
  if (event.key === 'Escape' && state.frame !== null) { state.frame = null; showFrame(); }
});
lanes.show(null);
showHistory();
start();
