// Small helpers to build a page from data. Text always goes in as text.

export const $ = (id) => document.getElementById(id);

/** An element. Attributes that are null or false are left out; `on...` are listeners; `--name` are custom properties. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key.startsWith('--')) node.style.setProperty(key, value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Arrow keys move through a group of which one member is in the order of tab. */
export function roving(buttons, choose) {
  buttons.forEach((button, number) => button.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const to = event.key === 'Home' ? 0 : event.key === 'End' ? buttons.length - 1 : step ? number + step : null;
    if (to === null || !buttons[to]) return;
    event.preventDefault();
    buttons[to].focus();
    choose(to);
  }));
}

export const seconds = (time) => `${time.toFixed(2)} s`;
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
export const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

export function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** A message in a place of its own, or none. */
export function notice(place, text, kind = 'error', action = null) {
  const button = action && el('button', { type: 'button', class: 'quiet', onclick: action.run }, action.name);
  place.replaceChildren(...(text ? [el('div', { class: `notice ${kind}` }, el('p', {}, text), button)] : []));
}
