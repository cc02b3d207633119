/* The calculator's arithmetic. Every coefficient comes from Python (nbutils.calculator.data, which lists the fields); here they are added, multiplied
   and compared, in the order in which Python does it. tests/browser/test_calculator_core.py holds each number and each line against Python's.
   Bytes, seconds, FLOP, watts and USD throughout; null is unknown. */
(function (root) {
  "use strict";

  // ── numbers and words, as Python writes them ────────────────────────────────────────────────────

  /** Python's round(): a half goes to the even neighbour. */
  function round(x) {
    const below = Math.floor(x), rest = x - below;
    if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
    return below % 2 === 0 ? below : below + 1;
  }

  const padded = (n, multiple) => Math.ceil(n / multiple) * multiple;
  const half = (n) => Math.floor(n / 2);

  /** x with a fixed number of decimals. toFixed rounds a half up, Python to the even digit; forty more digits tell which it is. */
  function fixed(x, digits) {
    if (Math.abs(x) >= 2 ** 53) return `${BigInt(x)}${digits ? `.${"0".repeat(digits)}` : ""}`;
    const exact = x.toFixed(digits + 40), cut = exact.slice(0, -40).replace(/\.$/, "");
    const isHalf = /^50*$/.test(exact.slice(-40)), isEven = "02468".includes(cut.slice(-1));
    return isHalf && isEven ? cut : x.toFixed(digits);
  }

  function grouped(text) {
    const [whole, decimals] = text.split(".");
    const parted = whole.replace(/\B(?=(\d{3})+$)/g, ",");
    return decimals === undefined ? parted : `${parted}.${decimals}`;
  }

  const count = (n) => grouped(fixed(n, 0));

  /** Python's :g: so many significant digits, no zeros behind the point, an exponent where it is shorter. */
  function general(x, digits = 6) {
    if (x === 0) return "0";
    const [mantissa, power] = x.toExponential(digits - 1).split("e"), exponent = Number(power);
    const bare = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
    if (exponent >= -4 && exponent < digits) return bare(fixed(x, digits - 1 - exponent));
    return `${bare(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }

  function shownDecimal(x) {
    const size = Math.abs(x);
    if (size > 0 && size < 0.1) return general(x, 2);
    return grouped(fixed(x, size < 1e6 ? 2 : 0));
  }

  /** A step of an explanation; `shown` is the value as `nbutils ... --explain` prints it. */
  function line(what, value, unit = "", how = "", source = "") {
    return { what, value, unit, how, source, shown: value === null ? "unknown" : shownDecimal(value) };
  }

  /** The same for a whole number. */
  function wholeLine(what, value, unit, how = "", source = "") {
    return { ...line(what, value, unit, how, source), shown: value === null ? "unknown" : count(value) };
  }

  const wordLine = (what, value) => ({ what, value, unit: "", how: "", source: "", shown: value });

  /** What an object itself has under a name; nothing that it inherits. */
  const own = (object, name) => (typeof name === "string" && Object.hasOwn(object, name) ? object[name] : undefined);

  // ── what is asked about ─────────────────────────────────────────────────────────────────────────

  /** A model in a format: the model's numbers, and those of what is stored. The names must be known. */
  function storedOf(data, query) {
    const model = data.models[query.model], format = data.formats[query.format];
    const [weight, stepWeight, experts, embedding, idle, active, arithmetic] = model.formats[query.format];
    const engine = format.engine;
    return {
      model, engine, format: query.format, formatClass: format.class, weight, stepWeight, experts, embedding, idle, active, arithmetic,
      kvRow: model.kv[engine][query.kv_type], kvRow16: model.kv[engine].f16, moe: model.experts !== null,
    };
  }

  function depthOf(query) {
    return { empty: 0, half: half(query.n_ctx), full: query.n_ctx }[query.filled];
  }

  /** A configuration of the registry. */
  function registryPlace(data, id) {
    const found = data.places[id];
    const [memory, unusable, system, overhead] = found.room;
    const names = ["memory", "unusable", "system", "overhead", "bandwidth", "power", "price"];
    const sources = Object.fromEntries(names.map((name, i) => [name, data.text[found.sources[i]]]));
    return {
      id, device: found.device, name: found.name, label: found.label, family: found.family, gb: found.gb,
      room: { memory, unusable, system, overhead }, discrete: found.discrete,
      bandwidth: found.bandwidth, power: found.power, usd: found.usd, asked: found.asked, stale: found.stale, unverified: found.unverified,
      state: found.state, sources, engines: Object.keys(found.where),
      peak(arithmetic) {
        const [flop, source] = data.peaks[found.peaks[arithmetic]];
        return { flop, source: data.text[source] };
      },
      where(engine, arithmetic) {
        const [group, share, layer, known, peak, peakSpread, decode, prefill, peakNote] = found.where[engine];
        const reached = data.typed.cpu_groups.includes(group) ? null : this.peak(arithmetic).flop;
        const notes = { decode: data.text[decode], prefill: data.text[prefill], peak: data.text[peakNote] };
        return { group, share, layer, known, bandwidth: found.bandwidth, peak, most: reached ?? Infinity, peakSpread, notes };
      },
    };
  }

  /** The machine that somebody describes (places.typed): its room is shared out as on the registry's machine of that family nearest in memory. */
  function typedPlace(data, query) {
    const facts = data.typed.families[query.family];
    const typed = query.compute_tflop_per_s === null ? null : query.compute_tflop_per_s * 1e12;
    const { room, discrete, sources } = typedRoom(data, query);
    return {
      id: "own", device: "own", name: "your own machine", label: "your own", family: query.family, gb: query.memory_gb, room, discrete,
      bandwidth: query.bandwidth_gb_per_s * 1e9, power: query.power_w, usd: query.price_usd, asked: null, stale: false, unverified: false, state: "",
      sources: { ...sources, memory: "typed", bandwidth: "typed", power: "typed", price: "typed" }, engines: Object.keys(facts.engines),
      peak: () => (typed === null ? { flop: null, source: "" } : { flop: typed, source: "typed" }),
      where: (engine) => typedWhere(data, query, facts, engine, typed),
    };
  }

  function typedRoom(data, query) {
    const memory = round(query.memory_gb * 2 ** 30);
    let like = null, nearest = Infinity;
    for (const [id, place] of Object.entries(data.places)) {
      const ratio = Math.max(place.room[0] / memory, memory / place.room[0]);
      if (place.family === query.family && ratio < nearest) [like, nearest] = [registryPlace(data, id), ratio];
    }
    if (like === null) {
      const [system, overhead, ...words] = data.typed.bare, [unusable, keeps, takes] = words.map((i) => data.text[i]);
      return { room: { memory, unusable: 0, system, overhead }, discrete: false, sources: { unusable, system: keeps, overhead: takes } };
    }
    const share = 1 - like.room.unusable / like.room.memory;
    const unusable = `the share of ${like.name}, ${like.id.split("/")[1]}`;
    const room = { ...like.room, memory, unusable: memory - round(memory * share) };
    return { room, discrete: like.discrete, sources: { ...like.sources, unusable } };
  }

  /** frames_predict.where for a machine that no file describes: by bandwidth and family. */
  function typedWhere(data, query, facts, engine, typedPeak) {
    const gb = query.bandwidth_gb_per_s, same = data.typed.same_bandwidth;
    const group = facts.engines[engine].at(gb >= data.typed.hbm_gb_per_s ? -1 : 0);
    let [share, layer, words] = [1, 1, group.decode];
    if (group.has_factors) {
      const alike = data.typed.devices.filter((d) => d[1] === query.family && Math.abs(d[2] / gb - 1) < same);
      words += alike.length ? `; with that bandwidth ${alike.map((d) => d[0]).join(", ")}` : ", none of this one";
      if (alike.length) [share, layer] = [3, 4].map((i) => middle(alike.map((d) => d[i])));
    }
    const peaks = typedPeak === null ? peaksLike(facts, gb, same) : { peak: typedPeak, most: typedPeak, peakSpread: 0, note: "" };
    const prefill = [group.prefill, group.notes, peaks.note].filter(Boolean).join("; ");
    const notes = { decode: `${words}; ${group.notes}`, prefill, peak: peaks.note };
    return { ...peaks, group: group.group, share, layer, known: false, bandwidth: 1e9 * gb, notes };
  }

  /** The FP16 peak where nobody says it: that of the machines with such a bandwidth, else what is usual in the family. */
  function peaksLike(facts, gb, same) {
    const alike = facts.typical.filter((d) => Math.abs(d[1] / gb - 1) < same);
    const other = facts.otherwise, most = other.most === null ? Infinity : other.most * gb * 1e9;
    if (!alike.length) return { peak: other.flop_per_byte * gb * 1e9, most, peakSpread: other.spread, note: other.words };
    const note = `peak as of ${alike.map((d) => d[0]).join(", ")}, which has that bandwidth`;
    return { peak: middle(alike.map((d) => d[2])) * gb * 1e9, most, peakSpread: 0.1, note };
  }

  /** The geometric mean. */
  function middle(values) {
    return values.reduce((product, value) => product * value, 1) ** (1 / values.length);
  }

  // ── memory ──────────────────────────────────────────────────────────────────────────────────────

  function kvCache(data, stored, n_ctx, batch) {
    const { model, engine } = stored, cells = padded(n_ctx, data.engines[engine].pad);
    const windowed = model.windowed * Math.min(cells, model.cells[engine]);
    return batch * (model.growing * cells + windowed) * stored.kvRow;
  }

  /** fit.compute_buffer_bound_bytes. */
  function computeBound(data, model, n_ctx, batch) {
    const { bound } = model, cells = padded(n_ctx, data.fit.pad), n = Math.min(data.fit.n_ubatch, cells * batch);
    let masks = bound.sees_all ? n * cells : 0;
    if (bound.window !== null) masks += n * Math.min(cells, padded(bound.window + n, data.fit.pad));
    const total = 2 * masks + 4 * (n * bound.per_token + batch * bound.per_sequence);
    return round(total * data.fit.margin) + data.fit.padding;
  }

  function boundBuffer(data, stored, n_ctx, batch) {
    return { bytes: computeBound(data, stored.model, n_ctx, batch), basis: stored.engine === "llama.cpp" ? "upper_bound" : "allowance" };
  }

  /** Pairs of context and compute buffer that llama.cpp named, for one sequence. */
  function keptPairs(stored, query) {
    const { kept } = stored.model;
    if (query.batch !== 1 || stored.engine !== "llama.cpp" || kept === null || !Object.hasOwn(kept, query.kv_type)) return [];
    return kept.n_ctx.map((n_ctx, i) => [n_ctx, kept[query.kv_type][i]]).filter((pair) => pair[1] !== null);
  }

  function computeBuffer(data, stored, query) {
    const kept = keptPairs(stored, query).find((pair) => pair[0] === padded(query.n_ctx, data.fit.pad));
    return kept ? { bytes: kept[1], basis: "kept" } : boundBuffer(data, stored, query.n_ctx, query.batch);
  }

  function budgetOf(data, stored, here, n_ctx, batch, compute) {
    const { model } = stored, output = batch * model.logits;
    const stays = here.discrete && stored.engine === "llama.cpp" ? stored.embedding + output : 0;
    const found = { weight: stored.weight, kv: kvCache(data, stored, n_ctx, batch), state: batch * model.state };
    Object.assign(found, { compute, output, overhead: here.room.overhead });
    found.elsewhere = stored.idle + stays;
    found.total = found.weight + found.kv + found.state + compute.bytes + output + found.overhead;
    found.available = here.room.memory - here.room.unusable - here.room.system + found.elsewhere;
    found.headroom = found.available - found.total;
    const isTight = found.headroom < data.fit.tight * (found.available - found.elsewhere);
    found.verdict = found.headroom < 0 ? "does_not_fit" : isTight ? "tight" : "fits";
    return found;
  }

  /** The largest context that surely fits: bisected by the bound, or one whose buffer llama.cpp named. */
  function largestContext(data, stored, here, query) {
    const trained = stored.model.trained, step = data.fit.pad, batch = query.batch;
    const fits = (n_ctx, compute) => budgetOf(data, stored, here, n_ctx, batch, compute ?? boundBuffer(data, stored, n_ctx, batch)).headroom >= 0;
    if (fits(trained)) return trained;
    let low = 0, high = Math.ceil(trained / step);
    while (high - low > 1) {
      const between = half(low + high);
      if (fits(between * step)) low = between;
      else high = between;
    }
    let found = low * step;
    for (const [n_ctx, bytes] of keptPairs(stored, query)) if (found < n_ctx && n_ctx <= trained && fits(n_ctx, { bytes })) found = n_ctx;
    return found || null;
  }

  // ── ceilings ────────────────────────────────────────────────────────────────────────────────────

  /** Tokens that a windowed layer sees when `depth` came before. */
  function windowSeen(model, depth) {
    if (model.window === null) return depth;
    return model.chunked ? depth % model.window : Math.min(depth, model.window);
  }

  /** The same, summed over n tokens that each see themselves too. */
  function windowSeenSum(model, depth, n) {
    const { window } = model, triangle = (k) => (k * (k + 1)) / 2;
    const upTo = (k) => {
      if (model.chunked) return Math.floor(k / window) * triangle(window) + triangle(k % window);
      const ramp = Math.min(k, window);
      return triangle(ramp) + (k - ramp) * window;
    };
    return upTo(depth + n) - upTo(depth);
  }

  const seenAt = (model, depth) => model.growing * depth + model.windowed * windowSeen(model, depth);

  /** Experts of a layer that a batch is expected to need, each token choosing evenly and on its own. */
  function distinctExperts([all, used], batch) {
    return all * (1 - (1 - used / all) ** batch);
  }

  function stepWeights(stored, batch) {
    if (batch === 1 || !stored.moe || !stored.experts) return stored.stepWeight;
    const [all, used] = stored.model.experts;
    return stored.stepWeight + (stored.experts * (distinctExperts(stored.model.experts, batch) - used)) / all;
  }

  function stepBytes(stored, depth, batch) {
    return stepWeights(stored, batch) + batch * (seenAt(stored.model, depth) * stored.kvRow + stored.model.state);
  }

  function decodeFlop(stored, depth) {
    const [perSeen, recurrent] = stored.model.flop;
    return 2 * stored.active + perSeen * seenAt(stored.model, depth) + recurrent;
  }

  /** FLOP to read n tokens at a depth: the output head for the last one only. */
  function prefillFlop(stored, n, depth) {
    const { model } = stored, [perSeen, recurrent, head] = model.flop;
    let seen = model.growing * (n * depth + (n * (n + 1)) / 2);
    if (model.windowed) seen += model.windowed * windowSeenSum(model, depth, n);
    return n * (2 * stored.active - head + recurrent) + head + perSeen * seen;
  }

  function decodeLimit(stored, here, depth, batch) {
    const peak = here.peak(stored.arithmetic), bytes = stepBytes(stored, depth, batch), flop = batch * decodeFlop(stored, depth);
    const reading = bytes / here.bandwidth, computing = peak.flop === null ? null : flop / peak.flop;
    const binding = computing !== null && computing > reading ? "compute" : "bandwidth";
    return { bytes, flop, batch, depth, reading, computing, binding, peak, ceiling: batch / Math.max(reading, computing ?? 0) };
  }

  /** Reading a prompt of n tokens into an empty context. `most` bounds the rate also where no peak is known: each weight is read once. */
  function prefillLimit(stored, here, n) {
    const peak = here.peak(stored.arithmetic).flop, flop = prefillFlop(stored, n, 0), bytes = stepWeights(stored, n) + stored.model.state;
    const reading = bytes / here.bandwidth, computing = peak === null ? null : flop / peak;
    const most = n / Math.max(reading, computing ?? 0);
    const binding = computing === null ? "" : reading > computing ? "bandwidth" : "compute";
    return { n, bytes, flop, binding, most, ceiling: computing === null ? null : most };
  }

  // ── what to expect: nbutils.predict ─────────────────────────────────────────────────────────────

  /** predict.constants for one case. */
  function constantsOf(data, where, stored) {
    const group = data.predict.decode[where.group], { model, moe, formatClass } = stored;
    return {
      share: group.share[formatClass] * where.share,
      kvShare: group.kv_share[model.latent ? 1 : 0] * where.share,
      layer_s: group.layer_s[(moe ? 1 : 0) + (model.hybrid ? 2 : 0)] * where.layer,
    };
  }

  /** What a token reads, whose cache is a 16-bit one. */
  function readOf(stored, depth) {
    return { weight: stored.stepWeight + stored.model.state, kv: seenAt(stored.model, depth) * stored.kvRow16 };
  }

  function decodeParts(read, model, bandwidth, constants) {
    const weights = read.weight / (constants.share * bandwidth), layers = model.n_layer * constants.layer_s;
    const kv = read.kv / (constants.kvShare * bandwidth);
    return { weights, layers, kv, all: weights + layers + kv };
  }

  /** predict.spread: how wide log(measured / expected) is. */
  function spreadOf(data, range, where, moe, layersPart, kvPart) {
    const unseen = where.known ? 0 : moe ? range.unseen_moe : range.unseen;
    const sum = range.groups[where.group] + (moe ? range.moe : 0) + range.layers * layersPart + range.kv * kvPart + unseen;
    return Math.min(Math.exp(sum), data.predict.widest);
  }

  /** The rate and its range; null where numbers are too large or too small for one. */
  function withinRange(range, ceiling, rate, spread) {
    const expected = Math.min(rate, ceiling);
    const low = expected * Math.exp(range.low * spread), high = Math.min(expected * Math.exp(range.high * spread), ceiling);
    return low > 0 && Number.isFinite(expected) ? { ceiling, expected, low, high } : null;
  }

  function predictDecode(data, stored, where, depth) {
    const read = readOf(stored, depth), parts = decodeParts(read, stored.model, where.bandwidth, constantsOf(data, where, stored));
    const range = data.predict.range.decode, spread = spreadOf(data, range, where, stored.moe, parts.layers / parts.all, parts.kv / parts.all);
    return withinRange(range, where.bandwidth / (read.weight + read.kv), 1 / parts.all, spread);
  }

  /** Seconds of a prompt's token at a depth: FLOP of weights and of attention, each at its share of the peak. */
  function prefillParts(data, stored, where, depth) {
    const n = data.predict.prompt_tokens, group = data.predict.prefill[where.group];
    const flop = prefillFlop(stored, n, Math.max(0, depth - half(n))) / n;
    const attention = Math.max(0, flop - prefillFlop(stored, n, 0) / n), linear = 2 * stored.active;
    // predict.richness: chips with much arithmetic per byte reach a smaller share of it.
    const rich = (where.peak / where.bandwidth / data.predict.usual_flop_per_byte) ** -data.predict.prefill_slope;
    const share = group.share * (stored.moe ? group.moe_factor : 1) * rich, attentionShare = group.attention_share * rich;
    const weights_s = linear / (share * where.peak), attention_s = attention / (attentionShare * where.peak);
    const layers_s = (stored.model.n_layer * 1e-6 * data.predict.prefill[where.group].layer_us) / data.predict.prefill_batch;
    const all = weights_s + attention_s + layers_s;
    return { linear, attention, share, attentionShare, weights_s, attention_s, layers_s, all, ceiling: where.most / flop };
  }

  function predictPrefill(data, stored, where, depth) {
    const parts = prefillParts(data, stored, where, depth), range = data.predict.range.prefill;
    const spread = spreadOf(data, range, where, stored.moe, parts.layers_s / parts.all, parts.attention_s / parts.all);
    return withinRange(range, parts.ceiling, 1 / parts.all, Math.hypot(spread, where.peakSpread));
  }

  /** What is to be expected of a phase, never above `most`: {free, rate}, or {why} where nothing can be said. */
  function expectedOf(data, query, stored, here, phase, most) {
    if (phase === "decode" && query.batch > 1) return { why: "the prediction is for one sequence" };
    const where = here.where(stored.engine, stored.arithmetic), depth = phase === "decode" ? depthOf(query) : half(query.n_ctx);
    const free = (phase === "decode" ? predictDecode : predictPrefill)(data, stored, where, depth);
    if (free === null) return { why: "numbers too large or too small for a rate" };
    const cache = query.kv_type === "f16" ? "" : `; for a 16-bit cache, ${query.kv_type} is chosen`;
    const [expected, low, high] = [free.expected, free.low, free.high].map((rate) => Math.min(rate, most));
    return { why: "", free, where, depth, most, rate: { expected, low, high }, basis: where.notes[phase] + cache };
  }

  // ── the arithmetic, line by line: nbutils.explain ───────────────────────────────────────────────

  function fitLines(data, query, stored, here, budget) {
    const { sources, room } = here, sequences = query.batch === 1 ? "" : `${query.batch} sequences of `;
    const lines = [
      wholeLine("weights", budget.weight, "bytes", `${stored.format}, summed over every tensor`),
      wholeLine("KV cache", budget.kv, "bytes", `${sequences}${count(query.n_ctx)} tokens in ${query.kv_type}; ${stored.model.layers}`),
    ];
    if (budget.state) lines.push(wholeLine("recurrent state", budget.state, "bytes", "F32, whatever the context and the cache type"));
    lines.push(
      wholeLine("compute buffer", budget.compute.bytes, "bytes", data.basis[budget.compute.basis]),
      wholeLine("output buffer", budget.output, "bytes", "logits of one token per sequence, F32"),
      wholeLine("runtime", budget.overhead, "bytes", "what the backend takes for itself", sources.overhead),
      wholeLine("total", budget.total, "bytes"),
      wholeLine("memory", room.memory, "bytes", "built in", sources.memory),
      wholeLine("out of reach", room.unusable, "bytes", "firmware, driver, or what the system grants no program", sources.unusable),
      wholeLine("system keeps", room.system, "bytes", "the running system and its desktop", sources.system),
    );
    if (budget.elsewhere) lines.push(wholeLine("elsewhere", budget.elsewhere, "bytes", elsewhereWords(stored, budget)));
    lines.push(
      wholeLine("available", budget.available, "bytes"),
      wholeLine("headroom", budget.headroom, "bytes", budget.verdict.replaceAll("_", " ")),
    );
    return lines;
  }

  function elsewhereWords(stored, budget) {
    const drafting = stored.idle ? ["layers that only draft tokens stay on disk"] : [];
    const host = budget.elsewhere > stored.idle ? ["the input embedding and the logits stay with the processor"] : [];
    return [...drafting, ...host].join("; ");
  }

  function limitLines(stored, here, limit) {
    const { batch, depth, peak } = limit, { model } = stored;
    const kv = seenAt(model, depth) * stored.kvRow;
    let every = batch === 1 ? "each weight once" : `each weight once for ${batch} sequences`;
    if (stored.moe) {
      const needed = grouped(fixed(distinctExperts(model.experts, batch), 1));
      every += `, ${needed} of ${model.experts[0]} experts a layer${batch > 1 ? " expected" : ""}`;
    }
    const lines = [
      wholeLine("weights read", round(limit.bytes - batch * (kv + model.state)), "bytes/step", every),
      wholeLine("K and V read", batch * kv, "bytes/step", `depth ${count(depth)}; ${model.layers}`),
    ];
    if (model.state) lines.push(wholeLine("state read", batch * model.state, "bytes/step"));
    lines.push(
      wholeLine("step", round(limit.bytes), "bytes", "their sum"),
      wholeLine("bandwidth", round(here.bandwidth), "bytes/s", "", here.sources.bandwidth),
      line("reading takes", limit.reading * 1e3, "ms/step", "bytes / bandwidth"),
      wholeLine("arithmetic", limit.flop, "FLOP/step", "two per active weight, and attention"),
      wholeLine("peak", peak.flop === null ? null : round(peak.flop), "FLOP/s", "dense", peak.source),
    );
    if (limit.computing !== null) lines.push(line("computing takes", limit.computing * 1e3, "ms/step", "FLOP / peak"));
    const together = batch > 1 ? `; all ${batch} sequences together` : "";
    lines.push(line("decode ceiling", limit.ceiling, "tok/s", `${limit.binding} binds${together}`));
    return lines;
  }

  function prefillCeilingLines(prompt) {
    return [
      wholeLine("prompt", prompt.flop, "FLOP", `${count(prompt.n)} tokens, attention included, head for the last one`),
      wholeLine("prompt read", round(prompt.bytes), "bytes", "every weight that it needs, once"),
      line("prefill ceiling", prompt.ceiling, "tok/s", prompt.binding ? `${prompt.binding} binds` : ""),
    ];
  }

  function expectedLines(data, stored, found, phase) {
    if (found.why) return [];
    const { free, most } = found, source = `data/calibration.yaml, ${data.fitted}`;
    const lines = [
      ...(phase === "decode" ? decodeLines : prefillLines)(data, stored, found, source),
      line("expected", free.expected, "tok/s", "one over their sum, at most the ceiling"),
      line("lowest", free.low, "tok/s", "one rate in twenty is below"),
      line("highest", free.high, "tok/s", "one rate in twenty is above"),
      wordLine("basis", found.where.notes[phase]),
    ];
    if (free.high > most) lines.push(line("at most", most, "tok/s", "the ceiling of this very case, which none of the three passes"));
    return lines;
  }

  function decodeLines(data, stored, { where, depth }, source) {
    const constants = constantsOf(data, where, stored), read = readOf(stored, depth), { model } = stored;
    const parts = decodeParts(read, model, where.bandwidth, constants);
    const why = [stored.moe ? "experts" : "", model.hybrid ? "a recurrent state" : ""].filter(Boolean).join(" and ");
    return [
      wholeLine("weights read", round(read.weight), "bytes/token", stored.format + (model.hybrid ? ", state included" : "")),
      wholeLine("K and V read", read.kv, "bytes/token", `depth ${count(depth)}`),
      wholeLine("bandwidth", round(where.bandwidth), "bytes/s", "nominal"),
      line("ceiling", where.bandwidth / (read.weight + read.kv), "tok/s", "bandwidth over bytes"),
      line("share for weights", constants.share, "", `${where.group}, its format and its machine`, source),
      line("reading weights", 1e3 * parts.weights, "ms/token", "bytes / (share x bandwidth)"),
      line("a layer takes", 1e6 * constants.layer_s, "µs", `besides${why ? `, with ${why}` : ""}`, source),
      line("layers take", 1e3 * parts.layers, "ms/token", `${model.n_layer} of them`),
      line("share for K and V", constants.kvShare, "", "", source),
      line("reading K and V", 1e3 * parts.kv, "ms/token", "bytes / (share x bandwidth)"),
    ];
  }

  function prefillLines(data, stored, { where, depth }, source) {
    const parts = prefillParts(data, stored, where, depth), batch = data.predict.prefill_batch;
    const reached = `${where.group}, at ${fixed(where.peak / where.bandwidth, 0)} FLOP per byte`;
    return [
      wholeLine("arithmetic of weights", round(parts.linear), "FLOP/token", "two per active weight"),
      wholeLine("arithmetic of attention", round(parts.attention), "FLOP/token", `depth ${count(depth)}`),
      wholeLine("peak", round(where.peak), "FLOP/s", where.notes.peak || "dense FP16"),
      line("ceiling", Number.isFinite(parts.ceiling) ? parts.ceiling : null, "tok/s", "by the best peak that the format's kernels may use"),
      line("share for weights", parts.share, "", reached + (stored.moe ? ", mixture of experts" : ""), source),
      line("weights take", 1e3 * parts.weights_s, "ms/token", "FLOP / (share x peak)"),
      line("share for attention", parts.attentionShare, "", "", source),
      line("attention takes", 1e3 * parts.attention_s, "ms/token", "FLOP / (share x peak)"),
      line("layers take", 1e3 * parts.layers_s, "ms/token", `${stored.model.n_layer} of them, for every ${batch} tokens`, source),
    ];
  }

  function timeLines(prompt) {
    const n = count(prompt.n_tokens);
    if (prompt.expected_s !== null) return [line("reading it takes", prompt.expected_s, "s", `${n} tokens / expected`)];
    if (prompt.ceiling_s !== null) return [line("reading it takes", prompt.ceiling_s, "s", `${n} tokens / prefill ceiling: at least`)];
    return [];
  }

  function costLines(query, here, found) {
    const lines = [], rate = found.rate_used === "expected" ? "expected rate" : "decode ceiling";
    if (found.energy_j_per_token !== null) {
      lines.push(line("energy", found.energy_j_per_token, "J/token", `rated ${general(here.power)} W / ${rate}`, here.sources.power));
    }
    if (found.usd_per_million_tokens !== null) {
      const bought = `${count(here.usd)} USD over ${general(query.years)} years that never rest`;
      const how = `${bought}, ${general(here.power)} W at ${general(query.usd_per_kwh)} USD/kWh`;
      lines.push(line("owned", found.usd_per_million_tokens, "USD/10⁶ tok", how, here.sources.price));
    }
    return lines;
  }

  // ── answers ─────────────────────────────────────────────────────────────────────────────────────

  /** Everything about one model in one place, with what its lines need. */
  function workOut(data, query, stored, here) {
    const budget = budgetOf(data, stored, here, query.n_ctx, query.batch, computeBuffer(data, stored, query));
    const limit = decodeLimit(stored, here, depthOf(query), query.batch), prompt = prefillLimit(stored, here, query.n_ctx);
    const decode = expectedOf(data, query, stored, here, "decode", limit.ceiling);
    const prefill = expectedOf(data, query, stored, here, "prefill", prompt.most);
    const rate = decode.rate ? decode.rate.expected : limit.ceiling;
    const numbers = {
      ...asked(query, stored, here), ...memoryOf(stored, here, budget),
      max_ctx: largestContext(data, stored, here, query), beyond_training: query.n_ctx > stored.model.trained,
      bandwidth_bytes_per_s: here.bandwidth, peak_flop_per_s: limit.peak.flop, step_bytes: limit.bytes,
      ceiling_tok_per_s: limit.ceiling, binding: limit.binding, expected_why_not: decode.why, basis: decode.basis ?? "",
      expected_tok_per_s: decode.rate?.expected ?? null, low_tok_per_s: decode.rate?.low ?? null, high_tok_per_s: decode.rate?.high ?? null,
      prompt: promptOf(prompt, prefill), rate_used: decode.rate ? "expected" : "ceiling",
      energy_j_per_token: here.power === null ? null : here.power / rate, usd_per_million_tokens: usdPerMillion(query, here, rate),
      power_w: here.power, price_usd: here.usd, price_asked: here.asked, price_stale: here.stale,
      price_unverified: here.unverified, supply: here.state,
    };
    return { numbers, budget, limit, prompt, decode, prefill };
  }

  function asked(query, stored, here) {
    return {
      model: query.model, format: query.format, engine: stored.engine, n_ctx: query.n_ctx, kv_type: query.kv_type, batch: query.batch,
      depth: depthOf(query),
      place: here.id, place_label: here.label, place_name: here.name, device: here.device, family: here.family, memory_gb: here.gb,
    };
  }

  function memoryOf(stored, here, budget) {
    return {
      weight_bytes: budget.weight, kv_cache_bytes: budget.kv, recurrent_state_bytes: budget.state, compute_buffer_bytes: budget.compute.bytes,
      compute_buffer_basis: budget.compute.basis, output_buffer_bytes: budget.output, overhead_bytes: budget.overhead, total_bytes: budget.total,
      memory_bytes: here.room.memory, unusable_bytes: here.room.unusable, system_bytes: here.room.system, elsewhere_bytes: budget.elsewhere,
      available_bytes: budget.available, headroom_bytes: budget.headroom, verdict: budget.verdict, n_ctx_train: stored.model.trained, caveat: "",
    };
  }

  /** A high rate is a short time: `low_s` belongs to the highest rate. */
  function promptOf(prompt, found) {
    const seconds = (rate) => (rate === undefined || rate === null ? null : prompt.n / rate);
    return {
      n_tokens: prompt.n, ceiling_tok_per_s: prompt.ceiling, ceiling_s: seconds(prompt.ceiling), expected_tok_per_s: found.rate?.expected ?? null,
      expected_s: seconds(found.rate?.expected), low_s: seconds(found.rate?.high), high_s: seconds(found.rate?.low),
      expected_why_not: found.why, basis: found.basis ?? "",
    };
  }

  /** A machine that never rests, written off over some years, and its electricity. */
  function usdPerMillion(query, here, rate) {
    if (here.usd === null || here.power === null) return null;
    const usdPerHour = here.usd / (query.years * 8766) + (here.power / 1000) * query.usd_per_kwh;
    return (usdPerHour / (rate * 3600)) * 1e6;
  }

  function answer(data, query) {
    const here = resolve(data, query);
    if (here === null) return null;
    const stored = storedOf(data, query), found = workOut(data, query, stored, here);
    const lines = {
      fit: fitLines(data, query, stored, here, found.budget),
      limits: limitLines(stored, here, found.limit),
      expected: expectedLines(data, stored, found.decode, "decode"),
      prompt: [...prefillCeilingLines(found.prompt), ...expectedLines(data, stored, found.prefill, "prefill"), ...timeLines(found.numbers.prompt)],
      cost: costLines(query, here, found.numbers),
    };
    return { ...found.numbers, lines };
  }

  /** The place that a query is about; null where it is wrong, or where no money buys what holds the model. */
  function resolve(data, query) {
    if (modelProblems(data, query).length || placeProblems(data, query).length) return null;
    if (query.place === "own") return typedPlace(data, query);
    if (query.place !== "budget") return registryPlace(data, query.place);
    const best = compare(data, query)[0];
    return best && best.verdict !== "does_not_fit" ? registryPlace(data, best.place) : null;
  }

  function compare(data, query) {
    if (modelProblems(data, query).length || placeNumbers(data, query).length) return [];
    const stored = storedOf(data, query), wanted = Object.keys(data.places).map((id) => registryPlace(data, id));
    if (query.place === "own") wanted.push(typedPlace(data, query));
    const inReach = (here) => query.place !== "budget" || isBought(data, here, query.budget_usd);
    const rows = wanted.filter((here) => here.engines.includes(stored.engine) && inReach(here)).map((here) => rowOf(workOut(data, query, stored, here).numbers));
    const rate = (row) => row.expected_tok_per_s ?? row.ceiling_tok_per_s, isIn = (row) => row.verdict !== "does_not_fit";
    const within = rows.filter(isIn).sort((a, b) => rate(b) - rate(a));
    return [...within, ...rows.filter((row) => !isIn(row)).sort((a, b) => b.headroom_bytes - a.headroom_bytes)];
  }

  /** Of what is on sale, the cheapest that holds it, and the faster of two; null where nothing does. */
  function cheapest(data, query) {
    const affordable = compare(data, { ...query, place: "budget", budget_usd: data.ranges.budget_usd[1] });
    const within = affordable.filter((row) => row.verdict !== "does_not_fit");
    return within.sort((a, b) => a.price_usd - b.price_usd)[0] ?? null;
  }

  function isBought(data, here, budget) {
    return data.on_sale.includes(here.state) && here.usd !== null && here.usd <= budget;
  }

  function rowOf(found) {
    const { place, device, memory_gb, verdict, total_bytes, available_bytes, headroom_bytes, max_ctx, ceiling_tok_per_s } = found;
    const { expected_tok_per_s, low_tok_per_s, high_tok_per_s, price_usd, price_asked, price_stale, price_unverified, supply } = found;
    return {
      place, device, name: found.place_label, memory_gb, verdict, total_bytes, available_bytes, headroom_bytes, max_ctx, ceiling_tok_per_s,
      expected_tok_per_s, low_tok_per_s, high_tok_per_s, prompt_s: found.prompt.expected_s ?? found.prompt.ceiling_s,
      price_usd, price_asked, price_stale, price_unverified, supply, usd_per_million_tokens: found.usd_per_million_tokens,
    };
  }

  // ── the inverse ─────────────────────────────────────────────────────────────────────────────────

  /** What a rate of one sequence takes with the whole context filled. */
  function need(data, query) {
    const single = { ...query, batch: 1 };
    if (modelProblems(data, single).length || numberProblems(data, query, ["want_tok_per_s"]).length) return null;
    const stored = storedOf(data, single), want = query.want_tok_per_s, n_ctx = query.n_ctx;
    const step = stepBytes(stored, n_ctx, 1), flop = decodeFlop(stored, n_ctx), compute = computeBuffer(data, stored, single);
    const memory = stored.weight + kvCache(data, stored, n_ctx, 1) + stored.model.state + compute.bytes + stored.model.logits;
    const family = resolve(data, single)?.family ?? null;
    const expected = family === null ? null : expectedBandwidth(data, stored, family, n_ctx, want, Math.max(want * step, 1));
    const nominal = expected === null ? "no bandwidth is expected to be enough" : "nominal";
    const how = family === null ? "no machine is chosen" : `${nominal}, with the constants of ${usualGroup(data, family, stored, expected ?? 0)}`;
    return {
      want_tok_per_s: want, n_ctx, kv_type: query.kv_type, family, bytes_per_token: step, bandwidth_bytes_per_s: want * step,
      expected_bandwidth_bytes_per_s: expected, memory_bytes: memory, flop_per_token: flop, compute_flop_per_s: want * flop,
      lines: [
        wholeLine("step", round(step), "bytes/token", `weights, state, and K and V of ${count(n_ctx)} tokens in ${query.kv_type}`),
        line("bandwidth", want * step, "bytes/s", `bytes x ${general(want)} tok/s; below it the rate is impossible`),
        line("expected at", expected, "bytes/s", how),
        wholeLine("memory", memory, "bytes", "weights, caches and buffers; the runtime and the system come on top"),
        wholeLine("arithmetic", flop, "FLOP/token", "two per active weight, and attention"),
        line("compute", want * flop, "FLOP/s", `FLOP x ${general(want)} tok/s`),
      ],
    };
  }

  function usualGroup(data, family, stored, bandwidth) {
    return data.typed.families[family].engines[stored.engine].at(bandwidth / 1e9 >= data.typed.hbm_gb_per_s ? -1 : 0).group;
  }

  /** The nominal bandwidth from which on a machine of a family is expected to reach a rate: below that of stacked memory, or from there on. */
  function expectedBandwidth(data, stored, family, depth, want, least) {
    const stacked = data.typed.hbm_gb_per_s * 1e9, most = data.predict.most_bandwidth;
    for (const [low, high] of [[least, Math.max(least, stacked)], [Math.max(least, stacked), Math.max(least, most)]]) {
      const where = { group: usualGroup(data, family, stored, low), share: 1, layer: 1, known: false };
      const reaches = (bandwidth) => (predictDecode(data, stored, { ...where, bandwidth }, depth)?.expected ?? 0) >= want;
      if (reaches(high)) return leastThat(reaches, low, high, data.predict.bisections);
    }
    return null;
  }

  function leastThat(reaches, low, high, steps) {
    for (let i = 0; i < steps; i++) {
      const between = Math.sqrt(low * high);
      if (reaches(between)) high = between;
      else low = between;
    }
    return high;
  }

  // ── what is wrong with a query ──────────────────────────────────────────────────────────────────

  const WORDS = {
    n_ctx: "context", batch: "batch", budget_usd: "budget", memory_gb: "memory", bandwidth_gb_per_s: "bandwidth", compute_tflop_per_s: "compute",
    power_w: "power", price_usd: "price", want_tok_per_s: "wanted rate", years: "years", usd_per_kwh: "price of electricity",
  };
  const OWN_NUMBERS = ["memory_gb", "bandwidth_gb_per_s", "compute_tflop_per_s", "power_w", "price_usd"];
  const error = (field, message) => ({ field, message, level: "error" });
  const said = (value) => (typeof value === "number" ? String(value) : JSON.stringify(String(value).slice(0, 40)));

  function numberProblem(data, field, value) {
    if (value === null && data.unknown.includes(field)) return [];
    const [least, most] = data.ranges[field], isWhole = data.whole.includes(field), kind = isWhole ? "a whole number" : "a number";
    const isGood = typeof value === "number" && value >= least && value <= most && (!isWhole || Number.isInteger(value));
    if (isGood) return [];
    const what = value === null || value === undefined || Number.isNaN(value) ? "is missing" : `is ${said(value)}`;
    return [error(field, `The ${WORDS[field]} ${what}; give ${kind} from ${grouped(String(least))} to ${grouped(String(most))}.`)];
  }

  const numberProblems = (data, query, fields) => fields.flatMap((field) => numberProblem(data, field, query[field]));

  /** What the answer for any place needs. */
  function modelProblems(data, query) {
    const found = numberProblems(data, query, ["n_ctx", "batch", "years", "usd_per_kwh"]), model = own(data.models, query.model);
    if (!data.filled.includes(query.filled)) found.push(error("filled", `The context is ${said(query.filled)}; it is ${data.filled.join(", ")}.`));
    if (model === undefined) return [...found, error("model", `There is no model ${said(query.model)}; choose one of the list.`)];
    if (own(model.formats, query.format) === undefined) {
      return [...found, error("format", `${model.name} has no format ${said(query.format)}; it has ${Object.keys(model.formats).join(", ")}.`)];
    }
    const engine = data.formats[query.format].engine, types = model.kv[engine];
    if (own(types, query.kv_type) === undefined) {
      const who = data.engines[engine].kv.includes(query.kv_type) ? `${model.name} under ${engine}` : engine;
      found.push(error("kv_type", `${who} has no cache type ${said(query.kv_type)}; it has ${Object.keys(types).join(", ")}.`));
    }
    return found;
  }

  /** What is wrong with the money, or with the machine that is described. */
  function placeNumbers(data, query) {
    if (query.place === "budget") return numberProblems(data, query, ["budget_usd"]);
    if (query.place !== "own") return [];
    const found = numberProblems(data, query, OWN_NUMBERS), families = data.typed.families;
    if (own(families, query.family) === undefined) {
      found.push(error("family", `There is no family ${said(query.family)}; it is ${Object.keys(families).join(", ")}.`));
    }
    return found;
  }

  /** The same, and whether the place is one and the format's engine is made for it. The model must be without problems. */
  function placeProblems(data, query) {
    const found = placeNumbers(data, query);
    if (found.length || query.place === "budget") return found;
    const here = query.place === "own" ? typedPlace(data, query) : own(data.places, query.place) && registryPlace(data, query.place);
    if (!here) return [error("place", `There is no machine ${said(query.place)}; choose one of the list.`)];
    const { engine, name } = data.formats[query.format], usual = data.models[query.model].usual;
    if (here.engines.includes(engine)) return [];
    const why = `${name} is opened by ${engine}, which is not made for ${here.label}`;
    return [error("format", `${why}; choose a format that llama.cpp opens, such as ${usual}.`)];
  }

  function check(data, query) {
    const ofModel = modelProblems(data, query), wanted = numberProblems(data, query, ["want_tok_per_s"]);
    if (ofModel.length) return [...ofModel, ...wanted, ...placeNumbers(data, query)];
    const ofPlace = placeProblems(data, query);
    return [...wanted, ...ofPlace, ...beyondTraining(data, query), ...(ofPlace.length ? [] : tooLittleMoney(data, query))];
  }

  function beyondTraining(data, query) {
    const { name, trained } = data.models[query.model], n_ctx = count(query.n_ctx);
    if (query.n_ctx <= trained) return [];
    const message = `${n_ctx} tokens is beyond the ${count(trained)} that ${name} was trained for; the bytes are right, the words may not be.`;
    return [{ field: "n_ctx", message, level: "warning" }];
  }

  function tooLittleMoney(data, query) {
    if (query.place !== "budget" || resolve(data, query) !== null) return [];
    const what = `Nothing on sale for ${grouped(String(query.budget_usd))} USD holds it`, best = cheapest(data, query);
    if (best === null) return [error("budget_usd", `${what}, nor does anything dearer with a known price; choose a smaller format or a smaller model.`)];
    const { name, place, price_usd } = best;
    return [{ ...error("budget_usd", `${what}; the cheapest that does is ${name}, USD ${count(price_usd)}.`), budget_usd: price_usd, place }];
  }

  // ── the address ─────────────────────────────────────────────────────────────────────────────────

  /** Keys of a link in their order. The first ten always stand in it, the others where they matter or are not what is usual. */
  const KEYS = new Map([
    ["m", "model"], ["f", "format"], ["c", "n_ctx"], ["k", "kv_type"], ["b", "batch"], ["d", "filled"], ["p", "place"], ["t", "want_tok_per_s"],
    ["y", "years"], ["kwh", "usd_per_kwh"], ["budget", "budget_usd"], ["gb", "memory_gb"], ["gbs", "bandwidth_gb_per_s"],
    ["tflops", "compute_tflop_per_s"], ["family", "family"], ["w", "power_w"], ["usd", "price_usd"],
  ]);
  const ALWAYS = 10, LONGEST_LINK = 2000, LONGEST_VALUE = 80;

  function link(data, query) {
    const parts = [];
    const matters = own({ own: [...OWN_NUMBERS, "family"], budget: ["budget_usd"] }, query.place) ?? [];
    [...KEYS].forEach(([key, field], i) => {
      const value = query[field], isTold = i < ALWAYS || matters.includes(field) || value !== data.defaults[field];
      if (isTold && value !== null && value !== undefined) parts.push(`${key}=${escaped(String(value))}`);
    });
    return `#${parts.join("&")}`;
  }

  function escaped(text) {
    try {
      return encodeURIComponent(text.slice(0, LONGEST_VALUE)).replaceAll("%2F", "/");
    } catch {
      return ""; // half a character, which no address can hold
    }
  }

  function unescaped(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return null;
    }
  }

  /** A query from an address. What is unknown or absurd becomes the default and is said; nothing in a text can make this fail. */
  function parse(data, text) {
    const problems = [], given = new Map();
    const whole = typeof text === "string" ? text : "";
    const leftOut = (what) => problems.push({ field: "link", message: `The link ${what}; it was left out.` });
    if (whole.length > LONGEST_LINK) leftOut(`goes on behind ${count(LONGEST_LINK)} characters`);
    for (const part of whole.slice(0, LONGEST_LINK).replace(/^[#?]/, "").split("&").filter(Boolean)) {
      const [key, ...rest] = part.split("="), value = unescaped(rest.join("="));
      if (!KEYS.has(key)) leftOut(`says ${said(key)}, which is nothing that this page asks`);
      else given.set(KEYS.get(key), value);
    }
    const query = { ...data.defaults };
    for (const [field, value] of given) {
      if (take(data, query, field, value)) continue;
      fallBack(data, field, value, query[field], problems);
      given.delete(field);
    }
    settle(data, query, given, problems);
    return { query, problems };
  }

  /** One value of a link into the query; false where the field can have no such value. */
  function take(data, query, field, value) {
    const isNumber = Object.hasOwn(data.ranges, field);
    const isPlain = value !== null && value.length <= LONGEST_VALUE && (!isNumber || /^\d{1,10}(\.\d{1,20})?$/.test(value));
    const read = isPlain && isNumber ? Number(value) : value;
    const isGood = isPlain && (isNumber ? !numberProblem(data, field, read).length : isKnown(data, field, read));
    if (isGood) query[field] = read;
    return isGood;
  }

  function isKnown(data, field, value) {
    if (field === "model") return Object.hasOwn(data.models, value);
    if (field === "format") return Object.hasOwn(data.formats, value);
    if (field === "place") return value === "own" || value === "budget" || Object.hasOwn(data.places, value);
    if (field === "family") return Object.hasOwn(data.typed.families, value);
    if (field === "filled") return data.filled.includes(value);
    return Object.values(data.engines).some((engine) => engine.kv.includes(value));
  }

  /** Format and cache type depend on the model: what it lacks becomes what is usual. */
  function settle(data, query, given, problems) {
    const model = data.models[query.model];
    if (!given.has("format")) query.format = model.usual;
    else if (!Object.hasOwn(model.formats, query.format)) {
      fallBack(data, "format", query.format, model.usual, problems);
      query.format = model.usual;
    }
    const engine = data.formats[query.format].engine;
    if (!Object.hasOwn(model.kv[engine], query.kv_type)) {
      fallBack(data, "kv_type", query.kv_type, "f16", problems);
      query.kv_type = "f16";
    }
  }

  function fallBack(data, field, value, instead, problems) {
    const what = value === null ? "something that cannot be read" : said(value);
    const name = WORDS[field] ?? { kv_type: "cache type", place: "machine", filled: "filling" }[field] ?? field;
    problems.push({ field, message: `The link asks for ${what} as ${name}; ${instead === null ? "nothing" : instead} is taken instead.` });
  }

  root.CalculatorCore = { parse, link, check, answer, compare, cheapest, need };
  if (typeof module === "object" && module.exports) module.exports = root.CalculatorCore;
})(typeof globalThis === "object" ? globalThis : this);
