// The controls that blend two personas, and the name of the blend in requests. Must not know how it is generated.

import { el, setChildren } from "./dom.js";
import { percent } from "./format.js";

/** `onToggle` is called when the blend is switched on or off, `onChange` when its personas or shares change. */
export function blendControls({ onToggle, onChange }) {
  const changed = () => {
    if (!enabled.checked) {
      enabled.checked = true;
      onToggle();
    }
    describe();
    onChange();
  };
  const enabled = el("input", { type: "checkbox", onchange: () => onToggle() });
  const parts = ["First persona in the blend", "Second persona in the blend"].map((label) => el("select", { "aria-label": label, onchange: changed }));
  const share = el("input", { type: "range", min: 0, max: 100, step: 5, value: "50", "aria-label": "Share of the first persona in the blend", oninput: changed });
  const spec = el("p.spec.small.muted.numeric", { "aria-live": "off" });
  const root = el(
    "div.panel.stack.tight",
    { hidden: true },
    el("label.check", {}, enabled, el("span", {}, el("b", {}, "Blend two personas"), " – move the slider to change the mix")),
    el("div.blend", {}, parts[0], share, parts[1], spec),
  );

  const names = () => parts.map((part) => part.value);

  /** The name of the blend in a request: `customer*0.7+partner*0.3`. */
  function name() {
    const [a, b] = names();
    const weight = Number(share.value) / 100;
    return a === b ? a : `${a}*${weight}+${b}*${Math.round((1 - weight) * 100) / 100}`;
  }

  function describe() {
    const [a, b] = names();
    const weight = Number(share.value) / 100;
    spec.textContent = a === b ? "Select two different personas." : `${percent(weight)} ${a}, ${percent(1 - weight)} ${b}: ${name()}`;
  }

  /** Offers these personas; the current choice stays where it can. */
  function setPersonas(personas) {
    for (const [index, select] of parts.entries()) {
      const before = select.value;
      setChildren(select, personas.map((persona) => el("option", { value: persona }, persona)));
      select.value = personas.includes(before) ? before : (personas[index] ?? "");
    }
    root.hidden = personas.length < 2;
    describe();
  }

  return {
    root,
    name,
    names,
    setPersonas,
    get enabled() {
      return enabled.checked && !root.hidden;
    },
  };
}
