/* The calculator's page: what is asked on one side, what comes of it on the other. It draws and computes nothing: every figure is
   CalculatorCore's, and every text goes through preact, which escapes it. */
(() => {
  "use strict";
  const { h, render } = preact;
  const { useEffect, useMemo, useRef, useState } = preactHooks;
  const html = htm.bind(h);
  const core = CalculatorCore;
  const [OWN, BUDGET, WANT] = ["own", "budget", "want_tok_per_s"];

  // ── words for numbers ──────────────────────────────────────────────────────────────────────────

  const DASH = "–";
  const fixed = (value, digits) =>
    value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
  const significant = (value, digits) => value.toLocaleString("en-GB", { maximumSignificantDigits: digits });
  const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
  const whole = (value) => (known(value) ? fixed(value, 0) : DASH);
  const rate = (value) => {
    if (!known(value)) return DASH;
    return value >= 100 ? fixed(value, 0) : value >= 1 ? fixed(value, 1) : significant(value, 2);
  };
  const gb = (bytes, digits = 2) => (known(bytes) ? fixed(bytes / 1e9, Math.abs(bytes) >= 1e12 ? 0 : digits) : DASH);
  const money = (value) => (!known(value) ? DASH : value >= 100 ? fixed(value, 0) : value >= 0.1 ? fixed(value, 2) : significant(value, 2));
  /** What is asked for a machine, with a mark where that was long ago. */
  const priced = (usd, stale) => `USD ${money(usd)}${stale ? " (stale)" : ""}`;
  const DURATIONS = [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"], [Infinity, 86400, "days"]];
  const duration = (seconds) => {
    if (!known(seconds)) return DASH;
    const [, unit_s, unit] = DURATIONS.find(([below]) => seconds < below);
    const n = seconds / unit_s;
    return `${n >= 10 ? fixed(n, 0) : n >= 1 ? fixed(n, 1) : significant(n, 2)} ${unit}`;
  };
  const span = (low, high, format) => {
    const [a, b] = [format(low), format(high)];
    const unit = a.replace(/^[\d.,]+/, "");
    return a === b ? a : unit && b.endsWith(unit) ? `${a.slice(0, -unit.length)} to ${b}` : `${a} to ${b}`;
  };

  const labelled = (place, label) => (place === OWN ? "Your own machine" : label);

  const VERDICTS = {
    fits: { word: "fits", title: "It fits", path: "M3.5 8.5l3 3 6-7" },
    tight: { word: "tight", title: "It fits, only just", path: "M8 3.5v5.5M8 12v.6" },
    does_not_fit: { word: "does not fit", title: "It does not fit", path: "M4 4l8 8M12 4l-8 8" },
  };
  /** A shape of its own for each verdict, so that colour says nothing alone. */
  const Mark = ({ verdict, size = 16 }) => html`
    <svg class=${`mark ${verdict}`} width=${size} height=${size} viewBox="0 0 16 16" aria-hidden="true">
      ${verdict === "fits" && html`<circle cx="8" cy="8" r="8" />`}
      ${verdict === "tight" && html`<rect x="2.3" y="2.3" width="11.4" height="11.4" rx="1" transform="rotate(45 8 8)" />`}
      ${verdict === "does_not_fit" && html`<rect width="16" height="16" rx="2" />`}
      <path d=${VERDICTS[verdict].path} />
    </svg>`;

  // ── fields ─────────────────────────────────────────────────────────────────────────────────────

  const Problems = ({ id, problems }) =>
    html`<div id=${id} class="problems">
      ${problems.map((p) => html`<p class=${isError(p) ? "error" : "warning"}>
        <strong>${isError(p) ? "Error" : "Note"}:</strong> ${p.message} <${Remedy} problem=${p} /></p>`)}
    </div>`;

  /** What would mend a problem, where the core knows it. */
  const Remedy = ({ problem }) => problem.mend && html`<button type="button" class="small" onClick=${problem.mend}>Use it
    <span class="hidden">: a budget of ${whole(problem.budget_usd)} USD</span></button>`;

  const isError = (problem) => problem.level !== "warning";
  const isWrong = (problems) => problems.some(isError);

  /** Lower case, and a size as one word, so that "4 GB" does not find 48 GB. */
  const fold = (text) => text.normalize("NFKD").toLowerCase().replace(/(\d)\s+gb?\b/g, "$1gb");
  /** What is said of any machine. */
  const SAID_OF_ALL = ["card", "gpu", "graphics"];
  const wordsOf = (text) => fold(text).split(/[\s,]+/).filter((word) => word && !SAID_OF_ALL.includes(word));
  const isStart = (text, at) => at === 0 || !/[\p{L}\p{N}.]/u.test(text[at - 1]);
  const startsIn = (text, word) => {
    for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + 1)) if (isStart(text, at)) return true;
    return false;
  };

  /** An editable combobox with a list, after the ARIA Authoring Practices: typing filters by the starts of words, the first match is taken on
      leaving. `also` makes one more option of what is typed, first or last. */
  const Combobox = ({ id, label, hint, value, options, also, onChange, problems, children }) => {
    const [text, setText] = useState(null); // what is being typed; null while nothing is
    const [open, setOpen] = useState(false);
    const [at, setAt] = useState(-1);
    const list = useRef(null);
    const chosen = options.findIndex((o) => o.id === value);
    const found = useMemo(() => {
      const words = wordsOf(text || "");
      const some = options.filter((o) => words.every((word) => startsIn(o.search, word)));
      const more = also && text ? also(text) : null;
      return !more ? some : more.first ? [more, ...some] : [...some, more];
    }, [text, options]);
    const active = open ? found[at] : undefined;
    useEffect(() => {
      const item = open && list.current.querySelector("[data-active]");
      if (item) item.scrollIntoView({ block: "nearest" });
    }, [at, open, found]);
    const close = () => { setOpen(false); setText(null); setAt(-1); };
    const choose = (option) => { close(); if (option && (option.id !== value || option.change)) onChange(option); };
    const show = (index) => { setOpen(true); setAt(index); };
    const move = (step) => {
      if (!open) show(Math.max(chosen, 0));
      else if (found.length) setAt((at + step + found.length) % found.length);
    };
    const KEYS = {
      ArrowDown: () => move(1),
      ArrowUp: () => move(-1),
      PageDown: () => open && setAt(Math.min(at + 8, found.length - 1)),
      PageUp: () => open && setAt(Math.max(at - 8, 0)),
      Home: () => open && setAt(0),
      End: () => open && setAt(found.length - 1),
      Enter: () => (open ? choose(active) : show(Math.max(chosen, 0))),
      Escape: close,
    };
    const onKeyDown = (event) => {
      if (!KEYS[event.key] || event.isComposing) return;
      if (open || event.key.startsWith("Arrow") || event.key === "Enter") event.preventDefault();
      KEYS[event.key]();
    };
    const onInput = (event) => { setText(event.target.value); show(wordsOf(event.target.value).length ? 0 : -1); };
    return html`<div class="field">
      <label for=${id} id=${`${id}-label`}>${label}</label>
      <div class="combobox">
        <input id=${id} type="text" role="combobox" autocomplete="off" spellcheck=${false}
          aria-expanded=${open ? "true" : "false"} aria-controls=${`${id}-list`} aria-autocomplete="list"
          aria-activedescendant=${active ? `${id}-${at}` : undefined}
          aria-describedby=${`${id}-hint ${id}-problems`} aria-invalid=${isWrong(problems) ? "true" : undefined}
          value=${text === null ? (chosen < 0 ? "" : options[chosen].name) : text}
          onFocus=${(e) => e.target.select()} onClick=${() => !open && show(Math.max(chosen, 0))}
          onInput=${onInput} onKeyDown=${onKeyDown} onBlur=${() => (text ? choose(active) : close())} />
        <svg class="arrow" width="12" height="8" viewBox="0 0 12 8" aria-hidden="true"><path d="M1 1.5l5 5 5-5" /></svg>
        <ul id=${`${id}-list`} ref=${list} role="listbox" aria-labelledby=${`${id}-label`} hidden=${!open || !found.length}
          onMouseDown=${(e) => e.preventDefault()}>
          ${open && found.map((o, index) => html`<li id=${`${id}-${index}`} key=${o.id} role="option" data-active=${index === at ? "" : undefined}
            aria-selected=${o.id === value ? "true" : "false"} onClick=${() => choose(o)}>
            <span>${o.name}</span> <small>${o.detail}</small></li>`)}
        </ul>
        ${open && !found.length && html`<p class="nothing" role="status">Nothing here is called “${text}”.</p>`}
      </div>
      ${children}
      <p class="hint" id=${`${id}-hint`}>${hint}</p>
      <${Problems} id=${`${id}-problems`} problems=${problems} />
    </div>`;
  };

  /** A text without its unit, which people write too; dollars in front as well. */
  const withoutUnit = (text, unit) => {
    const found = unit.startsWith("USD") ? text.trim().replace(/^(\$|USD)/i, "") : text.trim();
    return unit && found.toLowerCase().endsWith(unit.toLowerCase()) ? found.slice(0, -unit.length) : found;
  };

  /** "8,192", "8192", "8k" (1,024 each, where tokens are counted) or "1.5"; NaN for what is no number, null for nothing. */
  const number = (text, thousands) => {
    const found = /^\s*([+-]?)(?:([1-9]\d{0,2}(?:[ ,_]\d{3})+|\d+)(\.\d*)?|(\.\d+))(e[+-]?\d{1,3})?\s*([km]?)\s*$/i.exec(text);
    if (!text.trim()) return null;
    if (!found || (found[6] && !thousands)) return NaN;
    const [, sign, digits, decimals, bare, exponent, suffix] = found;
    const n = Number(`${sign}${(digits || "").replace(/[ ,_]/g, "")}${decimals || bare || ""}${exponent || ""}`);
    return n * { "": 1, k: thousands, m: thousands * thousands }[suffix.toLowerCase()];
  };

  const Numeric = ({ id, label, unit = "", hint, value, onChange, problems, thousands = 0, optional = false, children }) => {
    const [text, setText] = useState(null);
    // What is typed stays as it is while it means the value; a value from elsewhere replaces it.
    const meant = (some) => number(withoutUnit(some, unit), thousands);
    const typed = text !== null && Object.is(meant(text), value);
    const plain = known(value) ? value.toLocaleString("en-GB", { maximumFractionDigits: 6, useGrouping: thousands > 0 }) : "";
    const onInput = (event) => { setText(event.target.value); onChange(meant(event.target.value)); };
    return html`<div class="field">
      <label for=${id}>${label}${optional && html` <small>(optional)</small>`}</label>
      <div class="numeric">
        <input id=${id} type="text" inputmode=${thousands ? "text" : "decimal"} autocomplete="off" spellcheck=${false}
          value=${typed ? text : plain} onInput=${onInput} onBlur=${() => !isWrong(problems) && setText(null)}
          aria-describedby=${`${id}-hint ${id}-problems`} aria-invalid=${isWrong(problems) ? "true" : undefined} />
        ${unit && html`<span class="unit">${unit}</span>`}
      </div>
      ${children}
      <p class="hint" id=${`${id}-hint`}>${hint}</p>
      <${Problems} id=${`${id}-problems`} problems=${problems} />
    </div>`;
  };

  const Choice = ({ id, label, hint, value, onChange, problems, children }) => html`<div class="field">
    <label for=${id}>${label}</label>
    <select id=${id} value=${value} onChange=${(e) => onChange(e.target.value)}
      aria-describedby=${`${id}-hint ${id}-problems`} aria-invalid=${isWrong(problems) ? "true" : undefined}>${children}</select>
    <p class="hint" id=${`${id}-hint`}>${hint}</p>
    <${Problems} id=${`${id}-problems`} problems=${problems} />
  </div>`;

  // ── pictures ───────────────────────────────────────────────────────────────────────────────────

  /** Positions are percentages and heights pixels, so that a picture is as wide as there is room and its strokes stay as they are. */
  const percent = (share) => `${(100 * Math.min(Math.max(share, 0), 1)).toFixed(3)}%`;

  const HATCHES = {
    state: "M0 8L8 0M-2 2L2-2M6 10L10 6",
    buffers: "M0 0L8 8M-2 6L2 10M6-2L10 2",
    overhead: "M0 4h8",
    system: "M4 0v8",
    unusable: "M0 0L8 8M8 0L0 8",
    cache: "M2 2h1.5v1.5h-1.5zM6 6h1.5v1.5h-1.5z",
  };
  const Hatches = () => html`<svg class="hatches" width="0" height="0" aria-hidden="true"><defs>
    ${Object.entries(HATCHES).map(([name, path]) => html`<pattern id=${`hatch-${name}`} width="8" height="8" patternUnits="userSpaceOnUse">
      <path d=${path} class="hatch" /></pattern>`)}
  </defs></svg>`;

  const Block = ({ part, x, width, y, height }) => html`<g class=${`part ${part}`}>
    <rect x=${x} width=${width} y=${y} height=${height} />
    ${HATCHES[part] && html`<rect x=${x} width=${width} y=${y} height=${height} fill=${`url(#hatch-${part})`} class="over" />`}
  </g>`;

  const needed = (a) => [
    ["weights", "Weights", a.weight_bytes],
    ["cache", "KV cache", a.kv_cache_bytes],
    ["state", "Recurrent state", a.recurrent_state_bytes],
    ["buffers", "Buffers", a.compute_buffer_bytes + a.output_buffer_bytes],
    ["overhead", "Runtime", a.overhead_bytes],
  ].filter(([, , bytes]) => bytes > 0);
  const given = (a) => [
    ["usable", "For the model", a.memory_bytes - a.unusable_bytes - a.system_bytes],
    ["elsewhere", "Kept in another memory", a.elsewhere_bytes],
    ["system", "The system keeps", a.system_bytes],
    ["unusable", "Out of reach", a.unusable_bytes],
  ].filter(([, , bytes]) => bytes > 0);

  const Stack = ({ parts, whole: all, y, height }) => {
    let left = 0;
    return parts.map(([part, , bytes]) => {
      const x = left / all;
      left += bytes;
      return html`<${Block} part=${part} x=${percent(x)} width=${percent(bytes / all)} y=${y} height=${height} />`;
    });
  };

  /** What the model takes, stacked, over what the machine has; the line is how much of it a model may use. */
  const BudgetPicture = ({ answer }) => {
    const [takes, has] = [needed(answer), given(answer)];
    const all = Math.max(answer.total_bytes, has.reduce((sum, [, , bytes]) => sum + bytes, 0)) * 1.01;
    const at = percent(answer.available_bytes / all);
    const words = (parts) => parts.map(([, name, bytes]) => `${name} ${gb(bytes)} GB`).join(", ");
    const told = `Needed, ${gb(answer.total_bytes)} GB: ${words(takes)}. The machine, ${gb(answer.memory_bytes)} GB: ${words(has)}.`;
    const legend = (parts) => parts.map(([part, name, bytes]) => html`<li>
      <svg width="14" height="14" aria-hidden="true"><${Block} part=${part} x="0" width="14" y="0" height="14" /></svg>
      ${name} <b>${gb(bytes)}</b></li>`);
    return html`<figure class="budget">
      <svg role="img" width="100%" height="72"><title>${told}</title>
        <${Stack} parts=${takes} whole=${all} y=${16} height=${26} />
        <${Stack} parts=${has} whole=${all} y=${50} height=${18} />
        <line x1=${at} x2=${at} y1="0" y2="72" class="limit" />
        <text x=${at} y="11" dx=${answer.available_bytes / all > 0.5 ? -6 : 6} text-anchor=${answer.available_bytes / all > 0.5 ? "end" : "start"}>
          ${gb(answer.available_bytes, 1)} GB may be used</text>
      </svg>
      <figcaption>
        <p><b>Needed, ${gb(answer.total_bytes)} GB</b></p><ul class="legend">${legend(takes)}</ul>
        <p><b>The machine, ${gb(answer.memory_bytes)} GB</b></p><ul class="legend">${legend(has)}</ul>
      </figcaption>
    </figure>`;
  };

  /** The ceiling as a line, what is expected as a point, its range as a bar. */
  const RangePicture = ({ low, expected, high, ceiling }) => {
    const at = (value) => percent(value / (ceiling * 1.04));
    const told = [
      known(expected) && `expected ${rate(expected)}, nine times in ten ${span(low, high, rate)} tok/s`,
      `ceiling ${rate(ceiling)} tok/s`,
    ];
    return html`<svg class="range" role="img" width="100%" height="34"><title>${told.filter(Boolean).join("; ")}</title>
      <line x1="0" x2="100%" y1="20" y2="20" class="axis" />
      <line x1=${at(ceiling)} x2=${at(ceiling)} y1="6" y2="34" class="ceiling" />
      ${known(expected) && html`<rect x=${at(low)} width=${at(high - low)} y="14" height="12" rx="2" class="spread" />
        <circle cx=${at(expected)} cy="20" r="6" class="point" />`}
    </svg>`;
  };

  // ── the answer ─────────────────────────────────────────────────────────────────────────────────

  /** The lines that `explain()` prints, folded away; several groups of them by name. */
  const Arithmetic = ({ title, groups }) => {
    const filled = Object.entries(groups).filter(([, lines]) => lines.length);
    return filled.length > 0 && html`<details class="arithmetic"><summary>${title}</summary>
      <div class="scroll" tabindex="0" role="region" aria-label=${title}><table role="table">
        <thead role="rowgroup"><tr role="row">${["What", "Value", "Unit", "How", "Source"].map((word) => html`
          <th role="columnheader" scope="col" class=${word === "Value" ? "number" : ""}>${word}</th>`)}</tr></thead>
        ${filled.map(([name, lines]) => html`<tbody role="rowgroup">
          ${filled.length > 1 && html`<tr role="row"><th role="rowheader" scope="rowgroup" colspan="5"><b>${name}</b></th></tr>`}
          ${lines.map((line) => html`<tr role="row"><th role="rowheader" scope="row">${line.what}</th>
            ${typeof line.value === "string"
              ? html`<td role="cell" class="words" colspan="4">${line.shown}</td>`
              : html`<td role="cell" class="number">${line.shown}</td><td role="cell">${line.unit}</td>
                  <td role="cell" class="how">${line.how}</td><td role="cell" class="source">${line.source}</td>`}</tr>`)}
        </tbody>`)}
      </table></div></details>`;
  };

  const leftOver = ({ headroom_bytes: left }) => (left < 0 ? `${gb(-left)} GB too much` : `${gb(left)} GB left over`);

  const FitCard = ({ answer, names, budget, set, ways }) => {
    const verdict = VERDICTS[answer.verdict];
    const tooLong = answer.verdict === "does_not_fit";
    const sequences = answer.batch > 1 ? `${whole(answer.batch)} sequences of ` : "";
    return html`<section class=${`card verdict ${answer.verdict}`} aria-labelledby="verdict">
      <h3 id="verdict"><${Mark} verdict=${answer.verdict} size=${26} /> ${budget === null
        ? html`${verdict.title} <small>${leftOver(answer)}</small>`
        : html`${names.place} <small>${priced(answer.price_usd, answer.price_stale)}. ${verdict.title}: ${leftOver(answer)}</small>`}</h3>
      ${budget !== null && html`<p>Of what is on sale for at most USD ${money(budget)}, the fastest that holds it.</p>`}
      <p>${names.model} in ${names.format}, with ${sequences}${whole(answer.n_ctx)} tokens of context, takes <b>${gb(answer.total_bytes)} GB</b>.
        ${" "}${names.place} leaves a model <b>${gb(answer.available_bytes)} GB</b>.</p>
      <${BudgetPicture} answer=${answer} />
      <p class="largest">Largest context that fits: ${known(answer.max_ctx)
        ? html`<b>${whole(answer.max_ctx)} tokens</b>${answer.max_ctx === answer.n_ctx_train && ", all it was trained for"}${" "}
          ${answer.max_ctx !== answer.n_ctx && !tooLong && html`
            <button type="button" onClick=${() => set({ n_ctx: answer.max_ctx })}>Use it</button>`}`
        : html`<b>none</b>, not even 256 tokens`}</p>
      ${tooLong && html`<div class="ways"><p id="ways">${ways.length > 0 ? "It would fit with:"
        : "No format, cache or context makes it fit here, and nothing on sale with a known price holds it in a smaller format."}</p>
        ${ways.length > 0 && html`<ul class="chips" aria-labelledby="ways">
          ${ways.map(({ label, change }) => html`<li><button type="button" onClick=${() => set(change)}>${label}</button></li>`)}</ul>`}</div>`}
      ${answer.caveat && html`<p class="caveat">${answer.caveat}</p>`}
      <${Arithmetic} title="The memory, line by line" groups=${{ memory: answer.lines.fit }} />
    </section>`;
  };

  const ifItFitted = (answer, note) => (answer.verdict === "does_not_fit" ? `${note}, if it fitted` : note);
  const Figure = ({ value, unit, note }) => html`<p class="figure"><b>${value}</b> ${unit}${note && html` <small>${note}</small>`}</p>`;

  const DecodeCard = ({ answer }) => {
    const sure = known(answer.expected_tok_per_s);
    const all = answer.batch > 1 ? `, all ${whole(answer.batch)} sequences together` : "";
    const depth = answer.depth === 0 ? "nothing in the context yet" : `${whole(answer.depth)} tokens in the context`;
    return html`<section class="card" aria-labelledby="decode">
      <h3 id="decode">Writing (decode)</h3>
      ${sure
        ? html`<${Figure} value=${rate(answer.expected_tok_per_s)} unit="tok/s" note=${ifItFitted(answer, "expected")} />
          <p>Nine times in ten ${span(answer.low_tok_per_s, answer.high_tok_per_s, rate)} tok/s. No machine with this bandwidth passes
            ${" "}${rate(answer.ceiling_tok_per_s)} tok/s.</p>`
        : html`<${Figure} value=${rate(answer.ceiling_tok_per_s)} unit="tok/s" note=${ifItFitted(answer, "at most")} />
          <p>Nothing is expected here, only bounded: ${answer.expected_why_not || "no rate is known"}.</p>`}
      <${RangePicture} low=${answer.low_tok_per_s} expected=${answer.expected_tok_per_s} high=${answer.high_tok_per_s}
        ceiling=${answer.ceiling_tok_per_s} />
      <p class="quiet">With ${depth}${all}; ${answer.binding} binds.</p>
      <${Arithmetic} title="Decode, line by line" groups=${{ "The ceiling": answer.lines.limits, "What is expected": answer.lines.expected }} />
    </section>`;
  };

  const PromptCard = ({ answer }) => {
    const p = answer.prompt;
    const sure = known(p.expected_s);
    return html`<section class="card" aria-labelledby="prompt">
      <h3 id="prompt">Reading a prompt (prefill)</h3>
      ${sure || known(p.ceiling_s)
        ? html`<${Figure} value=${duration(sure ? p.expected_s : p.ceiling_s)} unit="" note=${ifItFitted(answer, sure ? "expected" : "at least")} />
          <p>For ${whole(p.n_tokens)} tokens${sure && html`, nine times in ten ${span(...[p.low_s, p.high_s].sort((a, b) => a - b), duration)}`}.
          ${known(p.ceiling_s) && sure && html` Never less than ${duration(p.ceiling_s)}.`}</p>
          <p class="quiet">${rate(sure ? p.expected_tok_per_s : p.ceiling_tok_per_s)} tok/s${
            known(p.ceiling_tok_per_s) && sure && `, at most ${rate(p.ceiling_tok_per_s)}`}.</p>`
        : html`<p>Unknown: no peak of this machine's arithmetic is known.</p>`}
      <${Arithmetic} title="The prompt, line by line" groups=${{ prompt: answer.lines.prompt }} />
    </section>`;
  };

  const CostCard = ({ answer, query }) => {
    const at = ifItFitted(answer, answer.rate_used === "expected" ? "as expected" : "at least");
    const joules = answer.energy_j_per_token;
    const missing = [!known(answer.price_usd) && "no price", !known(answer.power_w) && "no power"].filter(Boolean);
    const marks = [answer.price_stale && "stale", answer.price_unverified && "unverified"].filter(Boolean).map((mark) => `, ${mark}`).join("");
    const day = answer.price_asked ? ` (asked ${answer.price_asked}${marks})` : "";
    return html`<section class="card" aria-labelledby="cost">
      <h3 id="cost">A million tokens</h3>
      ${known(answer.usd_per_million_tokens)
        ? html`<${Figure} value=${`USD ${money(answer.usd_per_million_tokens)}`} unit="" note=${at} />`
        : html`<p>Money unknown: ${missing.join(" and ")} of this machine is known.</p>`}
      ${known(joules)
        ? html`<p>${rate(joules)} J a token, ${rate(joules / 3.6)} kWh a million.</p>`
        : html`<p>Energy unknown: no power of this machine is known.</p>`}
      <p class="quiet">${[
        known(answer.price_usd) && `USD ${money(answer.price_usd)}${day} over ${query.years} years that never rest`,
        known(answer.power_w) && `${whole(answer.power_w)} W${/-discrete$|^intel$/.test(answer.family) ? " of the card alone" : ""} at USD ${query.usd_per_kwh} a kWh`,
      ].filter(Boolean).join(", ")}</p>
      <${Arithmetic} title="Energy and money, line by line" groups=${{ cost: answer.lines.cost }} />
    </section>`;
  };

  // ── the other way round ──────────────────────────────────────────────────────────────────────────────

  const Need = ({ need, rows, stale, names, want, choose, field }) => {
    const fit = rows.filter((r) => r.verdict !== "does_not_fit");
    const sure = fit.filter((r) => known(r.expected_tok_per_s) && r.expected_tok_per_s >= want);
    const perhaps = fit.filter((r) => !sure.includes(r) && known(r.ceiling_tok_per_s) && r.ceiling_tok_per_s >= want);
    const cheapest = [...sure].sort((a, b) => (a.price_usd ?? Infinity) - (b.price_usd ?? Infinity));
    const list = (some, value) => html`<ul class="chips">${some.slice(0, 6).map((r) => html`<li>
      <button type="button" onClick=${() => choose(r.place)}>${labelled(r.place, r.name)}
        <small> ${rate(r[value])} tok/s${known(r.price_usd) && `, ${priced(r.price_usd, r.price_stale)}`}</small></button></li>`)}
      ${some.length > 6 && html`<li class="quiet">and ${some.length - 6} more in the table</li>`}</ul>`;
    return html`<section aria-labelledby="need-title">
      <h2 id="need-title">The other way round</h2>
      <div class="need">
        <div class="card">${field}</div>
        <div class="card" aria-live="off">
          ${need
            ? html`<p>That takes, of one sequence of ${names.model} in ${names.format}:</p>
              <dl>
                <div><dt>Bandwidth</dt><dd><b>${rate(need.bandwidth_bytes_per_s / 1e9)} GB/s</b> or no machine can
                  ${known(need.expected_bandwidth_bytes_per_s)
                    ? html`; about <b>${rate(need.expected_bandwidth_bytes_per_s / 1e9)} GB/s</b> of this kind of machine as they run`
                    : need.family !== null && "; what is lost beside reading keeps this kind of machine below it at any bandwidth"}</dd></div>
                <div><dt>Memory</dt><dd><b>${gb(need.memory_bytes)} GB</b>, and what the runtime and the system take</dd></div>
                <div><dt>Arithmetic</dt><dd><b>${significant(need.compute_flop_per_s / 1e12, 3)} TFLOP/s</b></dd></div>
              </dl>
              <${Arithmetic} title="What it takes, line by line" groups=${{ need: need.lines }} />`
            : html`<p>No answer while the question has an error.</p>`}
        </div>
        <div class=${`card${stale ? " stale" : ""}`}>
          ${stale && html`<p class="quiet">${STALE}</p>`}
          ${sure.length > 0
            ? html`<p><b>${sure.length}</b> of ${rows.length} configurations are expected to reach it, the cheapest first:</p>
              ${list(cheapest, "expected_tok_per_s")}`
            : html`<p>No machine of the table is expected to reach ${significant(want, 4)} tok/s with this model.</p>`}
          ${perhaps.length > 0 && html`<p><b>${perhaps.length}</b> ${sure.length > 0 && "more "}could by their ceilings:</p>
            ${list(perhaps, "ceiling_tok_per_s")}`}
        </div>
      </div>
    </section>`;
  };

  // ── every machine ──────────────────────────────────────────────────────────────────────────────

  const ticks = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const digit of [1, 2, 5]) {
        const n = digit * 10 ** power;
        if (n >= low * 0.999 && n <= high * 1.001) found.push(n);
      }
    }
    return found.length > 7 ? found.filter((n) => String(n.toPrecision(1)).includes("1")) : found;
  };

  const FIRST = 12;
  const STALE = "Of the last question that had an answer.";

  /** A row per machine in its best configuration, on one logarithmic axis. */
  const ComparePicture = ({ rows, place, want, choose }) => {
    const [all, setAll] = useState(false);
    const best = useMemo(() => {
      const seen = new Map();
      for (const row of rows) if (!seen.has(row.device) || row.place === place) seen.set(row.device, row);
      return rows.filter((row) => seen.get(row.device) === row);
    }, [rows, place]);
    const drawn = all ? best : best.filter((row, index) => (index < FIRST && row.verdict !== "does_not_fit") || row.place === place);
    const fit = drawn.filter((row) => row.verdict !== "does_not_fit");
    if (!best.length) return null;
    const values = fit.flatMap((r) => [r.low_tok_per_s, r.ceiling_tok_per_s]).filter(known).concat(want);
    const [low, high] = [Math.min(...values) / 1.25, Math.max(...values) * 1.15];
    const at = (value) => percent(Math.log(value / low) / Math.log(high / low));
    const axis = html`<li class="scale" aria-hidden="true"><span></span><svg width="100%" height="18">
      ${ticks(low, high).map((n) => html`<text x=${at(n)} y="13" text-anchor="middle">${significant(n, 3)}</text>`)}</svg><span>tok/s</span></li>`;
    return html`<figure class="compare">
      <figcaption>Writing, tok/s, logarithmic: <span class="key point"></span> expected, <span class="key spread"></span> nine times in ten,
        <span class="key ceiling"></span> ceiling, <span class="key want"></span> wanted.
        ${" "}Each machine in the configuration that does best.</figcaption>
      <ul class="rows">${fit.length > 0 && axis}
      ${drawn.map((r) => html`<li key=${r.place} class=${`${r.verdict}${r.place === place ? " chosen" : ""}`}>
        <button type="button" class="name" aria-pressed=${r.place === place ? "true" : "false"} onClick=${() => choose(r.place)}>
          ${labelled(r.place, r.name)}</button>
        ${r.verdict === "does_not_fit"
          ? html`<span class="short"><${Mark} verdict=${r.verdict} size=${13} /> does not fit: ${gb(-r.headroom_bytes, 1)} GB too much</span>`
          : html`<svg width="100%" height="100%" aria-hidden="true">
              ${ticks(low, high).map((n) => html`<line x1=${at(n)} x2=${at(n)} y1="0" y2="100%" class="grid" />`)}
              <line x1=${at(want)} x2=${at(want)} y1="0" y2="100%" class="want" />
              ${known(r.expected_tok_per_s) && html`<line x1=${at(r.low_tok_per_s)} x2=${at(r.high_tok_per_s)} y1="50%" y2="50%" class="spread" />`}
              <line x1=${at(r.ceiling_tok_per_s)} x2=${at(r.ceiling_tok_per_s)} y1="20%" y2="80%" class="ceiling" />
              ${known(r.expected_tok_per_s) && html`<circle cx=${at(r.expected_tok_per_s)} cy="50%" r="5" class="point" />`}
            </svg>
            <span class="value">${known(r.expected_tok_per_s) ? rate(r.expected_tok_per_s) : `≤ ${rate(r.ceiling_tok_per_s)}`}
              ${r.verdict === "tight" && html` <${Mark} verdict="tight" size=${13} /><span class="hidden"> tight</span>`}</span>`}
      </li>`)}</ul>
      ${!fit.length && html`<p>It fits on none of them.</p>`}
      ${(drawn.length < best.length || all) && html`<button type="button" aria-expanded=${all ? "true" : "false"} onClick=${() => setAll(!all)}>
        ${all ? "Only the fastest" : `All ${best.length} machines`}</button>`}
    </figure>`;
  };

  const MARKS = [{ sign: "†", word: "stale", field: "price_stale" }, { sign: "‡", word: "unverified", field: "price_unverified" }];
  const marksOf = (row) => MARKS.filter((mark) => row[mark.field]);

  /** Heading, value to sort by, and text; `down`: more is better; `rate`: none where the model does not fit. */
  const COLUMNS = [
    { id: "name", label: "Machine", value: (r) => r.name },
    { id: "memory", label: "Memory, GB", value: (r) => r.memory_gb, text: (r) => significant(r.memory_gb, 4) },
    { id: "left", label: "Left over, GB", down: true, value: (r) => r.headroom_bytes, text: (r) => gb(r.headroom_bytes, 1) },
    { id: "context", label: "Largest context", down: true, value: (r) => r.max_ctx, text: (r) => whole(r.max_ctx) },
    { id: "expected", label: "Expected, tok/s", down: true, rate: true, value: (r) => r.expected_tok_per_s,
      text: (r) => html`<b>${rate(r.expected_tok_per_s)}</b> <small>${span(r.low_tok_per_s, r.high_tok_per_s, rate)}</small>` },
    { id: "ceiling", label: "Ceiling, tok/s", down: true, rate: true, value: (r) => r.ceiling_tok_per_s, text: (r) => rate(r.ceiling_tok_per_s) },
    { id: "prompt", label: "Prompt read in", rate: true, value: (r) => r.prompt_s, text: (r) => duration(r.prompt_s) },
    { id: "price", label: "Price, USD", value: (r) => r.price_usd, 
      text: (r) => html`${money(r.price_usd)}${marksOf(r).map((mark) => html`<span aria-hidden="true">${mark.sign}</span><span class="hidden">
        ${mark.word}</span>`)}` },
    { id: "cost", label: "USD per 10⁶ tokens", rate: true, value: (r) => r.usd_per_million_tokens, text: (r) => money(r.usd_per_million_tokens) },
  ];
  const valueOf = (column, row) => (column.rate && row.verdict === "does_not_fit" ? null : column.value(row));

  /** Sorted by a column; what is unknown comes last whichever way. */
  const sorted = (rows, column, down) => {
    const isKnown = (row) => valueOf(column, row) !== null;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    const some = rows.filter(isKnown).sort((a, b) => (down ? -1 : 1) * order(valueOf(column, a), valueOf(column, b)));
    return [...some, ...rows.filter((row) => !isKnown(row))];
  };

  const CompareTable = ({ rows, place, days, choose }) => {
    const [by, setBy] = useState(null); // null: as they came, the fastest first
    const [onlyFit, setOnlyFit] = useState(false);
    const [all, setAll] = useState(false);
    const found = useMemo(() => {
      const some = onlyFit ? rows.filter((r) => r.verdict !== "does_not_fit") : rows;
      return by ? sorted(some, by.column, by.down) : some;
    }, [rows, by, onlyFit]);
    const shownRows = all ? found : found.slice(0, FIRST);
    const direction = (column) => (by && by.column === column ? (by.down ? "descending" : "ascending") : undefined);
    const sortBy = (column) => setBy({ column, down: by && by.column === column ? !by.down : Boolean(column.down) });
    return html`<div class="table">
      <div class="tools">
        <label class="check"><input type="checkbox" checked=${onlyFit} onChange=${(e) => setOnlyFit(e.target.checked)} /> Only what fits</label>
        <label class="sort">Sort by <select value=${by ? by.column.id : ""} onChange=${(e) => {
          const column = COLUMNS.find((c) => c.id === e.target.value);
          setBy(column ? { column, down: Boolean(column.down) } : null);
        }}><option value="">the fastest that fit</option>${COLUMNS.map((c) => html`<option value=${c.id}>${c.label}</option>`)}</select></label>
        <span class="quiet" role="status">${shownRows.length} of ${found.length} shown</span>
      </div>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="every-title"><table role="table">
        <thead role="rowgroup"><tr role="row">${COLUMNS.map((column) => html`
          <th role="columnheader" scope="col" class=${column.id === "name" ? "" : "number"} aria-sort=${direction(column)}>
            <button type="button" onClick=${() => sortBy(column)}>${column.label}<span class="arrow" aria-hidden="true"></span></button></th>`)}
        </tr></thead>
        <tbody role="rowgroup">${shownRows.map((r) => html`
          <tr role="row" key=${r.place} class=${r.verdict} aria-current=${r.place === place ? "true" : undefined}>
          <th role="rowheader" scope="row"><span class="named"><${Mark} verdict=${r.verdict} size=${14} />
            <span class="hidden">${VERDICTS[r.verdict].word}: </span>
            <button type="button" class="name" onClick=${() => choose(r.place)}>${labelled(r.place, r.name)}</button></span></th>
          ${COLUMNS.slice(1).map((column) => html`
            <td role="cell" class=${`number ${column.id}${column.rate ? " rate" : ""}`} data-label=${column.label}>
            ${known(valueOf(column, r)) ? column.text(r) : DASH}</td>`)}
        </tr>`)}</tbody>
      </table></div>
      ${found.length > FIRST && html`<button type="button" aria-expanded=${all ? "true" : "false"} onClick=${() => setAll(!all)}>
        ${all ? `Only the first ${FIRST}` : `All ${found.length} configurations`}</button>`}
      ${shownRows.some((r) => marksOf(r).length) && html`<p class="quiet notes">† Stale: this price was asked more than ${days} days ago.
        ${" "}‡ Unverified: from a weak source, or assumed.</p>`}
    </div>`;
  };

  // ── what there is to choose ────────────────────────────────────────────────────────────────────

  const ENGINES = { "llama.cpp": "llama.cpp (GGUF)", vllm: "vLLM and others (safetensors)", mlx: "MLX" };
  const FAMILIES = {
    "nvidia-discrete": "NVIDIA graphics card",
    "nvidia-hbm": "NVIDIA data-centre card",
    "nvidia-unified": "NVIDIA, unified memory",
    apple: "Apple silicon",
    "amd-discrete": "AMD graphics card",
    "amd-unified": "AMD, unified memory",
    intel: "Intel graphics card",
    qualcomm: "Qualcomm Snapdragon",
    cpu: "Processor alone",
  };
  const PLACE_HINTS = { [OWN]: "What its maker says of it.", [BUDGET]: "Of what is on sale, the fastest that holds it." };
  const CONTEXTS = [4096, 8192, 32768, 131072];
  /** As the file of the model in the registry has it. */
  const OTHER_NAMES = { "deepseek-v3": { search: "deepseek-r1 r1", words: "R1 has the same shape" } };
  /** Memories of a PC: two channels of 8 bytes, and the millions of transfers in a second. */
  const MODULES = [["DDR5-5600", 5600], ["DDR4-3200", 3200]].map(([name, mega]) => ({ name, gb_per_s: (2 * 8 * mega) / 1000 }));
  const OWN_WORDS = "my own machine custom type pc cpu processor desktop laptop computer ram ddr ddr4 ddr5";

  /** An amount of money in the place of a machine: a plain number may be a card's, so that it comes last. */
  const asBudget = (text) => {
    const isMoney = /\$|usd|dollar/i.test(text);
    const usd = number(withoutUnit(text.replace(/dollars?/i, ""), "USD"), 1000);
    return usd >= 1 && (isMoney || usd >= 100)
      ? { id: BUDGET, name: `My budget: ${money(usd)} USD`, detail: "the fastest for the money", change: { budget_usd: usd }, first: isMoney } : null;
  };

  /** The registry as the form shows it. */
  const catalogue = (data) => {
    const stored = (m) => Object.entries(m.formats).map(([id, [bytes]]) => {
      const { name, engine } = data.formats[id];
      return { id, name, engine, bytes };
    });
    const models = Object.entries(data.models).map(([id, m]) => {
      const formats = stored(m);
      const usual = formats.find((f) => f.id === m.usual);
      const detail = `${gb(usual.bytes, 1)} GB in ${usual.id}`;
      const other = OTHER_NAMES[id];
      return {
        id, name: m.name, trained: m.trained, usual: m.usual, formats, caches: m.kv, detail: other ? `${detail}; ${other.words}` : detail,
        search: fold(`${m.name} ${id} ${other ? other.search : ""}`),
      };
    });
    const places = Object.entries(data.places).map(([id, p]) => {
      const price = known(p.usd) && priced(p.usd, p.stale);
      const detail = [`${significant(p.bandwidth / 1e9, 4)} GB/s`, price, p.state !== "sold" && p.state].filter(Boolean).join(", ");
      // That it has processors tells no machine from another.
      return { id, name: p.label, detail, search: fold(`${p.label} ${p.name} ${id}`).replace(/-core [cg]pu/g, "-core"), runs: Object.keys(p.where) };
    });
    const model = (id) => models.find((m) => m.id === id);
    const place = (id) => places.find((p) => p.id === id);
    return {
      models,
      places,
      model,
      place,
      format: (query) => model(query.model).formats.find((f) => f.id === query.format) || model(query.model).formats[0],
      /** Cache types of an engine, and whether a model can have them. */
      caches: (m, engine) => data.engines[engine].kv.map((name) => ({ name, able: name in m.caches[engine] })),
      families: Object.keys(data.typed.families),
      /** A machine of the registry as far as another may be like it: what its maker says of it alone is left open. */
      asOwn: (id) => {
        const { gb: memory_gb, bandwidth, family } = data.places[id];
        return { memory_gb, bandwidth_gb_per_s: bandwidth / 1e9, family, compute_tflop_per_s: null, power_w: null, price_usd: null };
      },
    };
  };

  // ── the page ───────────────────────────────────────────────────────────────────────────────────

  /** The state that the address holds; an anchor of the page is none. */
  const stateText = () => {
    // What mail and social sites append to an address is none of the page's: a search is, if it names a model or a machine.
    const text = location.hash.length > 1 ? location.hash : /[?&][mp]=/.test(location.search) ? location.search : "";
    return document.getElementById(text.slice(1)) ? "" : text;
  };

  const useLater = (value, delay_ms) => {
    const [later, setLater] = useState(value);
    useEffect(() => {
      const timer = setTimeout(() => setLater(value), delay_ms);
      return () => clearTimeout(timer);
    }, [value]);
    return later;
  };

  const CopyLink = ({ link }) => {
    const [said, setSaid] = useState("");
    const field = useRef(null);
    const address = location.href.split(/[?#]/)[0] + link;
    const copy = async () => {
      try {
        await navigator.clipboard.writeText(address);
        setSaid("Copied.");
      } catch {
        setSaid("Copy it from here:");
      }
    };
    useEffect(() => setSaid(""), [link]);
    useEffect(() => {
      if (!field.current) return;
      field.current.focus();
      field.current.select();
    }, [said]);
    return html`<div class="share">
      <button type="button" onClick=${copy} disabled=${!link}>Copy link</button> <span role="status">${said}</span>
      ${said.startsWith("Copy it") && html`<input ref=${field} type="text" readonly value=${address} aria-label="Link to this answer" />`}
    </div>`;
  };

  const Question = ({ known: k, query, set, problems, link }) => {
    const of = (field) => problems.filter((p) => p.field === field);
    const model = k.model(query.model);
    const { engine } = k.format(query);
    const engines = [...new Set(model.formats.map((f) => f.engine))];
    const here = k.place(query.place);
    const group = (name) => `${ENGINES[name]}${here && !here.runs.includes(name) ? ", not for this machine" : ""}`;
    const numeric = (field, more) => html`<${Numeric} id=${field} value=${query[field]} problems=${of(field)}
      onChange=${(v) => set({ [field]: v })} ...${more} />`;
    const contexts = [...new Set([...CONTEXTS.filter((n) => n < model.trained), model.trained])];
    const short = (n) => (n % 2 ** 20 === 0 ? `${n / 2 ** 20}M` : n % 1024 === 0 ? `${n / 1024}k` : whole(n));
    const label = (n) => `${short(n)}${n === model.trained ? ", as trained" : ""}`;
    const places = useMemo(() => [
      { id: OWN, name: "My own machine …", detail: "GB, GB/s, TFLOP/s", search: OWN_WORDS },
      { id: BUDGET, name: "My budget …", detail: "the fastest for the money", search: "my budget money usd $ dollars price" },
      ...k.places,
    ], [k]);
    return html`<form class="question" aria-labelledby="question-title" onSubmit=${(e) => e.preventDefault()}>
      <h2 id="question-title">The question</h2>
      <div class="fields">
        <div class="wide"><${Combobox} id="model" label="Model" value=${query.model} options=${k.models} onChange=${(o) => set({ model: o.id })}
          hint=${`Type to search ${k.models.length} models.`} problems=${of("model")} /></div>
        <div class="wide"><${Choice} id="format" label="Format" value=${query.format} onChange=${(v) => set({ format: v })} problems=${of("format")}
          hint="">${engines.map((name) => html`<optgroup label=${group(name)}>
            ${model.formats.filter((f) => f.engine === name).map((f) => html`
              <option value=${f.id}>${f.name}: ${gb(f.bytes, 1)} GB</option>`)}</optgroup>`)}<//></div>
        <div class="wide"><${Combobox} id="place" label="Machine" value=${query.place} options=${places} also=${asBudget}
          onChange=${(o) => set({ place: o.id, ...o.change })} problems=${of("place")} hint=${here ? `${here.detail}.` : PLACE_HINTS[query.place]}>
          <div class="chips" role="group" aria-label="No machine of the list">
            ${[[OWN, "My own machine"], [BUDGET, "My budget"]].map(([id, label]) => html`<button type="button" aria-pressed=${query.place === id ? "true" : "false"} onClick=${() => set({ place: id })}>${label}</button>`)}
          </div><//></div>
        ${query.place === BUDGET && html`<div class="wide">${numeric("budget_usd", {
          label: "Budget", unit: "USD", thousands: 1000, hint: "A graphics card counts with the computer around it." })}</div>`}
        ${query.place === OWN && html`
          ${numeric("memory_gb", { label: "Memory as sold", unit: "GB" })}
          ${numeric("bandwidth_gb_per_s", { label: "Bandwidth", unit: "GB/s" })}
          <div class="wide"><div class="chips modules" role="group" aria-label="Memory of a PC">${MODULES.map(({ name, gb_per_s }) => html`
            <button type="button" onClick=${() => set({ bandwidth_gb_per_s: gb_per_s, family: "cpu" })}
              aria-pressed=${query.bandwidth_gb_per_s === gb_per_s ? "true" : "false"}>${name}, two channels: ${gb_per_s}</button>`)}</div>
            <p class="hint">Channels × 8 bytes × MT/s; a processor alone.</p></div>
          <div class="wide"><${Choice} id="family" label="Kind" value=${query.family} onChange=${(v) => set({ family: v })}
            problems=${of("family")} hint="">
            ${k.families.map((name) => html`<option value=${name}>${FAMILIES[name] || name}</option>`)}<//></div>
          <div class="wide">${numeric("compute_tflop_per_s", { label: "Dense FP16 peak", unit: "TFLOP/s", optional: true })}</div>
          ${numeric("power_w", { label: "Power", unit: "W", optional: true })}
          ${numeric("price_usd", { label: "Price", unit: "USD", optional: true })}`}
        <div class="wide">${numeric("n_ctx", { label: "Context", unit: "tokens", thousands: 1024, children: html`
          <div class="chips" role="group" aria-label="Common contexts">${contexts.map((n) => html`
            <button type="button" aria-pressed=${query.n_ctx === n ? "true" : "false"} onClick=${() => set({ n_ctx: n })}>${label(n)}</button>`)}
          </div>` })}</div>
        <fieldset class="wide"><legend>How full it is while writing</legend><div class="radios">
          ${["empty", "half", "full"].map((value) => html`<label><input type="radio" name="filled" value=${value}
            checked=${query.filled === value} onChange=${() => set({ filled: value })} /> ${value}</label>`)}</div>
          <${Problems} id="filled-problems" problems=${of("filled")} /></fieldset>
        <${Choice} id="kv_type" label="Cache type" value=${query.kv_type} onChange=${(v) => set({ kv_type: v })} problems=${of("kv_type")} hint="">
          ${k.caches(model, engine).map(({ name, able }) => html`<option value=${name} disabled=${!able}>${name}</option>`)}<//>
        ${numeric("batch", { label: "Sequences", hint: "Side by side, each with the whole context." })}
        <details class="more" open=${of("years").length + of("usd_per_kwh").length > 0}><summary>Money</summary><div class="fields">
          ${numeric("years", { label: "Kept for", unit: "years" })}
          ${numeric("usd_per_kwh", { label: "Electricity", unit: "USD/kWh" })}</div></details>
      </div>
      <${CopyLink} link=${link} />
      <p class="hint">To keep it, save this page as a file: it works without a network.</p>
    </form>`;
  };

  /** What is wrong with a question: what was typed and is no number, and what the core says of the rest. */
  const problemsOf = (data, query) => {
    const words = Object.keys(query).filter((field) => Number.isNaN(query[field]));
    return [...words.map((field) => ({ field, level: "error", message: "This is not a number; digits are, with a point before decimals." })),
      ...core.check(data, query).filter((p) => !words.includes(p.field))];
  };

  /** A change with what follows from it: another model keeps the format where it has it, another engine the cache type where it has it, and
      a machine of one's own begins as the one that was chosen. */
  const settled = (k, old, change) => {
    const next = { ...old, ...change };
    const model = k.model(next.model);
    if (change.model && k.format(next).id !== next.format) next.format = model.usual;
    if (change.place === OWN && k.place(old.place)) Object.assign(next, k.asOwn(old.place));
    const able = Object.keys(model.caches[k.format(next).engine]);
    if ((change.model || change.format) && !able.includes(next.kv_type)) [next.kv_type] = able;
    return next;
  };

  /** Smaller formats, cache types and the context with which it would fit, and the cheapest machine on sale that holds it. */
  const waysOut = (data, k, query, answer) => {
    if (!answer || answer.verdict !== "does_not_fit") return [];
    const model = k.model(query.model);
    const best = core.cheapest(data, query);
    const changes = [
      ...model.formats.filter((f) => f.bytes < answer.weight_bytes).sort((a, b) => b.bytes - a.bytes)
        .map((f) => ({ label: f.name, change: { format: f.id } })),
      ...Object.keys(model.caches[k.format(query).engine]).map((name) => ({ label: `a ${name} cache`, change: { kv_type: name } })),
    ];
    const fitting = changes.filter(({ change }) => {
      const next = settled(k, query, change);
      const found = isWrong(core.check(data, next)) ? null : core.answer(data, next);
      return found && found.verdict !== "does_not_fit";
    });
    const { max_ctx } = answer;
    if (known(max_ctx) && max_ctx < query.n_ctx) fitting.push({ label: `${whole(max_ctx)} tokens of context`, change: { n_ctx: max_ctx } });
    if (best) {
      const label = `${best.name}: ${priced(best.price_usd, best.price_stale)}, the cheapest on sale`;
      fitting.push({ label, change: { place: best.place } });
    }
    // Where this format has no machine, the largest smaller one that has.
    const other = best ? null : model.formats.filter((f) => f.bytes < answer.weight_bytes).sort((a, b) => b.bytes - a.bytes)
      .map((f) => ({ f, row: core.cheapest(data, settled(k, query, { format: f.id })) })).find(({ row }) => row);
    if (other) {
      const label = `${other.f.name} on ${other.row.name}: ${priced(other.row.price_usd, other.row.price_stale)}`;
      fitting.push({ label, change: { format: other.f.id, place: other.row.place } });
    }
    return fitting;
  };

  const App = ({ data, known: k, start }) => {
    const [query, setQuery] = useState(start.query);
    const [broken, setBroken] = useState(start.problems);
    const changed = useRef(false);
    const set = (change) => { changed.current = true; setBroken([]); setQuery((old) => settled(k, old, change)); };
    const choose = (place) => set({ place });

    const problems = useMemo(() => problemsOf(data, query).map((p) => (
      p.budget_usd ? { ...p, mend: () => set({ budget_usd: p.budget_usd }) } : p)), [query]);
    const wrong = problems.filter((p) => isError(p) && p.field !== WANT);
    const good = useRef(null);
    // A rate that is no rate spoils its own section and no other.
    const asked = useMemo(() => (problems.some((p) => p.field === WANT && isError(p))
      ? { ...query, [WANT]: good.current ? good.current.query[WANT] : start.query[WANT] } : query), [query]);
    const fresh = useMemo(() => (wrong.length ? null : core.answer(data, asked)), [asked]);
    if (fresh) good.current = { answer: fresh, query: asked };
    const last = good.current;
    const answer = last && last.answer;
    const link = fresh ? core.link(data, asked) : "";

    // Of a question that has no rows, those of the last one that had an answer.
    const has = useMemo(() => core.compare(data, asked).length > 0, [asked]);
    const old = !has && Boolean(last);
    const everywhere = (more) => core.compare(data, { ...(old ? last.query : asked), ...more });
    const rows = useMemo(() => everywhere({}), [asked]);
    // A rate is asked for of one sequence with its context full.
    const able = useMemo(() => everywhere({ batch: 1, filled: "full" }), [asked]);
    const need = useMemo(() => core.need(data, asked), [asked]);
    const ways = useMemo(() => waysOut(data, k, asked, fresh), [fresh]);

    const now = useRef("");
    now.current = link || now.current;
    useEffect(() => {
      const timer = changed.current && link && setTimeout(() => {
        try { history.replaceState(null, "", link); } catch { /* some places allow no address of one's own */ }
      }, 150);
      return () => clearTimeout(timer);
    }, [link]);
    useEffect(() => {
      const follow = () => {
        const text = stateText();
        if (!text) {
          // An anchor of the page was followed: the question goes back into the address.
          try { if (now.current) history.replaceState(null, "", now.current); } catch { /* as above */ }
          return;
        }
        const found = core.parse(data, text);
        changed.current = false;
        setBroken(found.problems);
        setQuery(found.query);
      };
      addEventListener("hashchange", follow);
      return () => removeEventListener("hashchange", follow);
    }, []);

    const namesOf = (q) => ({ model: k.model(q.model).name, format: k.format(q).name });
    const names = answer && { ...namesOf(last.query), place: labelled(answer.place, answer.place_label) };
    const isBudget = Boolean(last) && last.query.place === BUDGET;
    const brief = fresh && (fresh.verdict === "does_not_fit" ? `${gb(-fresh.headroom_bytes)} GB too much`
      : known(fresh.expected_tok_per_s) ? `about ${rate(fresh.expected_tok_per_s)} tok/s` : `at most ${rate(fresh.ceiling_tok_per_s)} tok/s`);
    const title = fresh && (isBudget ? names.place : VERDICTS[fresh.verdict].title);
    const said = useLater(fresh ? `${title}: ${brief}.` : "This question has no answer.", 700);
    useEffect(() => { if (changed.current && fresh) document.title = `${names.model} on ${names.place}: ${VERDICTS[fresh.verdict].word}`; }, [fresh]);

    const box = useRef(null);
    const [seen, setSeen] = useState(true);
    useEffect(() => {
      const watcher = new IntersectionObserver(([entry]) => setSeen(entry.isIntersecting));
      watcher.observe(box.current);
      return () => watcher.disconnect();
    }, []);
    const jump = () => { box.current.scrollIntoView(); box.current.focus({ preventScroll: true }); };
    const stale = !fresh && answer;
    const want = query[WANT];

    return html`
      <${Hatches} />
      <p class="hidden" role="status" aria-live="polite">${said}</p>
      ${broken.length > 0 && html`<div class="broken" role="alert">
        <p><strong>Not all of this link was understood.</strong> What was not has its usual value instead.</p>
        <ul>${broken.slice(0, 6).map((p) => html`<li>${p.message}</li>`)}${broken.length > 6 && html`<li>and ${broken.length - 6} more</li>`}</ul>
        <button type="button" onClick=${() => setBroken([])}>Close</button></div>`}
      <div class="both">
        <${Question} known=${k} query=${query} set=${set} problems=${problems} link=${link} />
        <section id="answer" class="answer" tabindex="-1" ref=${box} aria-labelledby="answer-title">
          <h2 id="answer-title">The answer</h2>
          <div class=${`cards${stale ? " stale" : ""}`}>
            ${!fresh && html`<div class="instead"><p><strong>This question has no answer.</strong>
              ${" "}${wrong.length > 0 && html`${wrong[0].message} <${Remedy} problem=${wrong[0]} />`}</p>
              ${answer && html`<p class="quiet">Below is the answer to the last question that had one.</p>`}</div>`}
            ${answer && html`<${FitCard} answer=${answer} names=${names} set=${set} ways=${ways}
                budget=${isBudget ? last.query.budget_usd : null} />
              <${DecodeCard} answer=${answer} /><${PromptCard} answer=${answer} /><${CostCard} answer=${answer} query=${last.query} />`}
          </div>
        </section>
        <${Need} need=${need} rows=${able} stale=${old} names=${namesOf(asked)} want=${asked[WANT]} choose=${choose}
          field=${html`<${Numeric} id=${WANT} label="I want" unit="tok/s" value=${want} onChange=${(v) => set({ want_tok_per_s: v })}
            problems=${problems.filter((p) => p.field === WANT)} hint="From one sequence with its context full." />`} />
      </div>
      <section aria-labelledby="every-title" class=${old ? "stale" : ""}>
        <h2 id="every-title">The same question for every machine</h2>
        ${old && html`<p class="quiet">${STALE}</p>`}
        ${!rows.length && html`<p>There is no machine to compare.</p>`}
        ${rows.length > 0 && html`<${ComparePicture} rows=${rows} place=${fresh && fresh.place} want=${asked[WANT]} choose=${choose} />
          <${CompareTable} rows=${rows} place=${fresh && fresh.place} days=${data.stale_days} choose=${choose} />`}
      </section>
      ${!seen && html`<button type="button" class="strip" onClick=${jump}>
        ${fresh ? html`<${Mark} verdict=${fresh.verdict} size=${20} /> ${title} <small>${brief}</small>`
          : html`<${Mark} verdict="does_not_fit" size=${20} /> This question has no answer`}</button>`}
      <p class="quiet">Registry of ${data.date}, constants of the expected rates of ${data.fitted}, nbutils ${data.version}.</p>
      <p class="print">${location.href.split(/[?#]/)[0]}${link}</p>`;
  };

  const begin = () => {
    const data = JSON.parse(document.getElementById("data").textContent);
    window.CALCULATOR_DATA = data;
    const root = document.createElement("div");
    render(html`<${App} data=${data} known=${catalogue(data)} start=${core.parse(data, stateText())} />`, root);
    document.getElementById("app").replaceChildren(root);
  };
  begin();
})();
