// Everything with a time, on one clock: all tracks have one left edge and one width, and x = time / duration.

import { $, bytesOf, el, mean, roving, seconds } from './dom.js';

/** The stretch of time that each frame owns: up to halfway to its neighbours. */
export function spansOf(times, duration) {
  return times.map((time, i) => {
    const before = i ? (time - times[i - 1]) / 2 : times.length > 1 ? (times[1] - time) / 2 : duration / 2;
    const after = i < times.length - 1 ? (times[i + 1] - time) / 2 : before;
    return [Math.max(0, time - before), Math.min(duration, time + after)];
  });
}

/** What a step stands for: the half way to its neighbours, no wider than the usual step. */
export function stepSpans(times, duration) {
  const gaps = times.slice(1).map((time, i) => time - times[i]).sort((a, b) => a - b);
  const usual = gaps.length ? gaps[Math.floor(gaps.length / 2)] : Math.min(1, duration);
  return times.map((time) => [time - usual / 2, time + usual / 2]);
}

/** A picture of a lane that is drawn again when its size or the colours change. */
function canvas(height, draw) {
  const node = el('canvas', { 'aria-hidden': 'true', '--height': `${height}px` });
  node.paint = (view) => {
    const width = node.clientWidth;
    if (!width) return;
    const scale = Math.min(3, devicePixelRatio || 1);
    [node.width, node.height] = [Math.round(width * scale), Math.round(height * scale)];
    const context = node.getContext('2d');
    context.scale(scale, scale);
    const style = getComputedStyle(node);
    const colour = (name) => style.getPropertyValue(name).trim();
    draw(context, width, height, colour, view);
  };
  return node;
}

const xAt = (time, duration, width) => (time / duration) * width;

function drawWave(sound, duration) {
  return (context, width, height, colour) => {
    const middle = height / 2, bins = sound.low.length;
    context.fillStyle = colour('--channel');
    context.beginPath();
    const x = (bin) => xAt(sound.start + (bin + 0.5) * sound.seconds / bins, duration, width);
    sound.high.forEach((value, bin) => context.lineTo(x(bin), middle - value / 127 * middle * 0.92 - 0.6));
    for (let bin = bins - 1; bin >= 0; bin--) context.lineTo(x(bin), middle - sound.low[bin] / 127 * middle * 0.92 + 0.6);
    context.fill();
  };
}

function drawCurves(sensor, duration) {
  return (context, width, height, colour) => {
    context.lineWidth = 1.4;
    context.lineJoin = 'round';
    sensor.curves.forEach((curve, number) => {
      context.strokeStyle = colour(`--curve-${number + 1}`);
      context.beginPath();
      let drawing = false;
      curve.values.forEach((value, i) => {
        if (value === null) { drawing = false; return; }
        const point = [xAt(sensor.times[i], duration, width), height - 4 - value * (height - 8)];
        if (drawing) context.lineTo(...point); else context.moveTo(...point);
        drawing = true;
      });
      context.stroke();
    });
  };
}

function drawSteps(steps, duration) {
  const shades = bytesOf(steps.shades), spans = stepSpans(steps.times, duration);
  return (context, width, height, colour) => {
    context.fillStyle = colour('--channel');
    const band = height / steps.rows;
    spans.forEach(([from, to], step) => {
      const left = xAt(from, duration, width), wide = Math.max(0.6, xAt(to - from, duration, width));
      for (let row = 0; row < steps.rows; row++) {
        context.globalAlpha = shades[step * steps.rows + row] / 255;
        context.fillRect(left, height - (row + 1) * band, wide, band + 0.4);
      }
    });
    context.globalAlpha = 1;
  };
}

/** A bar for each frame, with its number where there is room. */
function drawBars(spans, values, most, duration, write) {
  return (context, width, height, colour, view) => {
    const shown = values.map((value) => value * view.factor);
    const top = Math.max(most, ...shown);
    context.font = `11px ${colour('--font')}`;
    context.textAlign = 'center';
    spans.forEach(([from, to], i) => {
      const left = xAt(from, duration, width), wide = xAt(to - from, duration, width);
      const high = Math.max(shown[i] > 0 ? 1.5 : 0, (shown[i] / top) * (height - 16));
      context.fillStyle = colour('--channel');
      context.globalAlpha = view.frame === null || view.frame === i ? 0.85 : 0.4;
      context.fillRect(left + 1, height - high, Math.max(1, wide - 2), high);
      context.globalAlpha = 1;
      context.fillStyle = colour('--ink-2');
      if (wide > 34) context.fillText(write(shown[i]), left + wide / 2, Math.max(11, height - high - 4));
    });
  };
}

/** A row for each frame; of the chosen one, bars in front of the rest. */
function drawAttention(rows, steps, duration) {
  const spans = stepSpans(steps.times, duration);
  return (context, width, height, colour, view) => {
    const high = height / rows.length, ink = colour('--channel');
    const strongest = (weights) => Math.max(1e-6, ...weights);
    rows.forEach(({ first, weights }, i) => {
      const most = strongest(weights);
      weights.forEach((weight, k) => {
        const [from, to] = spans[first + k];
        context.fillStyle = ink;
        context.globalAlpha = (0.08 + 0.92 * weight / most) * (view.frame === null ? 0.9 : 0.18);
        context.fillRect(xAt(from, duration, width), i * high, Math.max(1, xAt(to - from, duration, width) - 0.6), Math.max(1, high - 1));
      });
    });
    context.globalAlpha = 1;
    const chosen = view.frame === null ? null : rows[view.frame];
    if (!chosen) return;
    const most = strongest(chosen.weights);
    chosen.weights.forEach((weight, k) => {
      const [from, to] = spans[chosen.first + k];
      const tall = Math.max(2, weight / most * (height - 4));
      context.fillStyle = ink;
      context.fillRect(xAt(from, duration, width), height - tall, Math.max(1.5, xAt(to - from, duration, width) - 0.8), tall);
    });
  };
}

function lane(name, title, note, content, kind = '') {
  const label = el('div', { class: 'label' }, el('span', { class: 'lane-title' }, title), el('span', { class: 'quiet-text' }, note));
  return el('div', { class: `lane ${kind}`, 'data-lane': name }, label, el('div', { class: 'track' }, content));
}

const absent = (text) => el('span', { class: 'absent' }, text);
const fixed = (value) => (value < 0.005 ? '0' : value.toFixed(2));

/** The lanes of one channel. */
function channelLanes(channel, look, spans) {
  const { seconds: duration } = look, title = `${channel.patch}: ${channel.channel}`, kind = `channel-${look.channels.indexOf(channel) % 3}`;
  const lanes = [];
  const add = (name, heading, note, height, draw, scaled = false) => {
    const node = canvas(height, draw);
    node.scaledBy = scaled ? channel.patch : null;
    lanes.push(lane(name, heading, note, node, kind));
  };
  if (channel.sound) add('sound', title, 'the sound it hears', 44, drawWave(channel.sound, duration));
  if (channel.sensor) add('sensor', title, channel.sensor.curves.map((curve) => curve.name).join(', '), 56, drawCurves(channel.sensor, duration));
  if (!channel.steps) return [...lanes, lane('steps', title, channel.encoder, absent(`Nothing was found for ${channel.channel}: this channel adds nothing.`), kind)].map(opening);
  const { steps } = channel;
  add('steps', channel.sound || channel.sensor ? 'Side steps' : title, `${steps.count} × ${steps.width} ${channel.encoder}`, 48, drawSteps(steps, duration));
  if (channel.gate) add('gate', 'Gate', '0 shut, 2 open', 44, drawBars(spans, channel.gate.frames, 2, duration, fixed));
  if (channel.change) add('change', 'Change', 'added ÷ token', 52, drawBars(spans, channel.change.frames, 0.01, duration, fixed), true);
  if (channel.attention) {
    const rows = channel.attention;
    add('attention', 'Attention', 'frames × side steps', Math.min(160, Math.max(64, 9 * rows.length)), drawAttention(rows, steps, duration));
  }
  return lanes.map(opening);
}

const opening = (node, number) => {
  if (!number) node.classList.add('first');
  return node;
};

/** Frames as buttons: pictures out of one strip. */
function frameLane(look, spans, hooks) {
  const { frames, seconds: duration } = look, count = frames.times.length;
  const buttons = spans.map(([from, to], i) => {
    const picture = el('span', { class: 'picture', '--count': count, '--number': i });
    picture.style.backgroundImage = `url("${frames.picture}")`;
    return el('button', {
      type: 'button', class: 'frame', role: 'radio', 'aria-checked': 'false', 'aria-label': `Frame ${i + 1} at ${seconds(frames.times[i])}`,
      tabindex: i ? '-1' : '0', '--left': from / duration, '--wide': (to - from) / duration, '--shape': frames.width / frames.height, onclick: () => hooks.select(i),
    }, picture);
  });
  roving(buttons, (to) => hooks.select(to));
  const group = el('div', { class: 'frames', role: 'radiogroup', 'aria-label': 'Frames that are looked at' }, buttons);
  return { buttons, node: lane('frames', 'Frames', `${count} are looked at`, group) };
}

function ruler(duration, hooks, now) {
  const track = el('div', {
    class: 'track ruler', role: 'slider', tabindex: '0', 'aria-label': 'Position in the video', 'aria-valuemin': '0', 'aria-valuemax': duration.toFixed(2),
    onkeydown: (event) => {
      const step = Math.max(0.1, duration / 100);
      const by = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step }[event.key];
      if (by) hooks.seek(hooks.time() + by);
      else if (event.key === 'Home') hooks.seek(0);
      else if (event.key === 'End') hooks.seek(duration);
      else if (event.key === ' ') hooks.toggle();
      else return;
      event.preventDefault();
    },
  });
  const every = [0.25, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((step) => duration / step <= 9) || 1200;
  for (let time = 0; time <= duration + 1e-6; time += every) {
    track.append(el('span', { class: 'tick', '--left': time / duration }, `${+time.toFixed(2)}${time ? '' : ' s'}`));
  }
  return { track, node: el('div', { class: 'lane ruler-lane' }, el('div', { class: 'label' }, now), track) };
}

/** Lanes in #lanes. `hooks`: seek, time, toggle, select. */
export function createLanes(hooks) {
  const root = $('lanes');
  let look = null, parts = {}, view = { frame: null, strengths: {} }, dragging = false;

  function show(next) {
    look = next;
    parts = {};
    if (!look) {
      root.replaceChildren(el('p', { class: 'quiet-text' }, 'Lanes come with a video: its frames, its sound, and what each patch does with its own stream.'));
      return;
    }
    const duration = look.seconds, spans = spansOf(look.frames.times, duration);
    const now = el('span', { class: 'now' });
    const clock = ruler(duration, hooks, now), frames = frameLane(look, spans, hooks);
    const heard = look.channels.some((channel) => channel.sound);
    const sound = look.sound ? lane('sound', 'Sound', 'of the video', canvas(44, drawWave(look.sound, duration))) : lane('sound', 'Sound', '', absent('This video has no sound.'));
    const cursor = el('div', { class: 'cursor', 'aria-hidden': 'true' });
    root.replaceChildren(clock.node, frames.node, ...(heard ? [] : [sound]), ...look.channels.flatMap((channel) => channelLanes(channel, look, spans)), el('div', { class: 'overlay', 'aria-hidden': 'true' }, cursor));
    parts = { now, cursor, ruler: clock.track, frames: frames.buttons, spans, canvases: [...root.querySelectorAll('canvas')] };
    update(view);
    tick();
  }

  function paint() {
    for (const node of parts.canvases || []) node.paint({ frame: view.frame, factor: node.scaledBy ? view.strengths[node.scaledBy] ?? 1 : 1 });
  }

  function update(next) {
    view = next;
    if (!look) return;
    parts.frames.forEach((button, i) => {
      button.setAttribute('aria-checked', String(i === view.frame));
      button.tabIndex = i === (view.frame ?? 0) ? 0 : -1;
    });
    paint();
  }

  function tick() {
    if (!look) return;
    const time = Math.min(look.seconds, hooks.time());
    parts.cursor.style.setProperty('--left', time / look.seconds);
    parts.now.textContent = seconds(time);
    parts.ruler.setAttribute('aria-valuenow', time.toFixed(2));
    parts.ruler.setAttribute('aria-valuetext', seconds(time));
    parts.frames.forEach((button, i) => button.classList.toggle('current', time >= parts.spans[i][0] && time < parts.spans[i][1]));
  }

  const timeAt = (event) => {
    const area = root.querySelector('.overlay').getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - area.left) / area.width)) * look.seconds;
  };
  root.addEventListener('pointerdown', (event) => {
    if (!look || event.button || !event.target.closest('.track') || event.target.closest('.frame')) return;
    dragging = true;
    root.setPointerCapture(event.pointerId);
    hooks.seek(timeAt(event));
  });
  root.addEventListener('pointermove', (event) => { if (dragging) hooks.seek(timeAt(event)); });
  for (const end of ['pointerup', 'pointercancel']) root.addEventListener(end, () => { dragging = false; });
  new ResizeObserver(paint).observe(root);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);

  return { show, update, tick };
}

/** The chosen frame in words and numbers, for those who cannot see the lanes, and those who want to know. */
export function inspectorOf(look, frame, strengths, close) {
  if (!look) return [];
  if (frame === null) {
    const words = [
      ['Gate', 'how much of a channel the question lets in: 0 is shut, 2 wide open.'],
      ['Change', 'what a patch adds to a frame’s tokens, in lengths of the tokens themselves.'],
      ['Attention', 'which side steps a frame reads. Choose a frame to see its own.'],
    ];
    return [el('dl', { class: 'words' }, words.flatMap(([term, text]) => [el('dt', {}, term), el('dd', {}, text)]))];
  }
  const head = el('div', { class: 'head' }, el('h3', {}, `Frame ${frame + 1}`), el('span', { class: 'quiet-text' }, seconds(look.frames.times[frame])),
    el('button', { type: 'button', class: 'quiet', 'aria-label': 'Close the frame', onclick: close }, '×'));
  return [head, ...look.channels.map((channel) => channelFacts(channel, frame, strengths[channel.patch] ?? 1))];
}

function channelFacts(channel, frame, strength) {
  const facts = [];
  const add = (term, text) => facts.push(el('dt', {}, term), el('dd', {}, text));
  if (channel.gate) add('Gate', `${channel.gate.frames[frame].toFixed(2)} of 2`);
  if (channel.change) add('Change', `× ${(channel.change.frames[frame] * strength).toFixed(2)} at strength ${strength}`);
  const row = channel.attention?.[frame];
  if (row && row.weights.length) {
    const read = row.weights.map((weight, k) => [weight, channel.steps.times[row.first + k]]);
    add('Reads', `${read.length} steps, ${seconds(read[0][1])} to ${seconds(read.at(-1)[1])}`);
    const strongest = [...read].sort((a, b) => b[0] - a[0]).slice(0, 4);
    add('Most', el('ul', { class: 'reads' }, strongest.map(([weight, time]) => el('li', {}, `${seconds(time)}: ${(100 * weight).toFixed(0)} %`))));
  } else if (channel.steps) add('Reads', channel.attention ? 'no step' : 'not shown: the attention is too large, or there is none');
  const tokens = channel.change?.tokens?.[frame];
  return el('div', { class: 'facts' }, el('h4', {}, `${channel.patch}: ${channel.channel}`), channel.steps ? el('dl', {}, facts) : el('p', { class: 'quiet-text' }, 'This video lacks the channel.'),
    tokens && tokens.length > 1 && tokens.length <= 1024 ? tokenGrid(tokens, strength) : null);
}

/** The change of each token, laid out as in the picture where they are a square. */
function tokenGrid(tokens, strength) {
  const side = Math.round(Math.sqrt(tokens.length)), columns = side * side === tokens.length ? side : Math.min(32, tokens.length);
  const most = Math.max(1e-6, ...tokens);
  const cells = tokens.map((value) => el('i', { '--v': value / most * Math.min(1, strength) }));
  return el('div', { class: 'tokens', role: 'img', '--columns': columns, 'aria-label': `Change of ${tokens.length} tokens: ${(mean(tokens) * strength).toFixed(2)} on average, at most ${(most * strength).toFixed(2)}` }, cells);
}
