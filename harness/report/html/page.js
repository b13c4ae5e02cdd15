"use strict";
(() => {
  const PRINTED_CLIPS = 200; // more would be too long; the page says how many it left out
  const MARGIN_ROWS = 12; // drawn above and below the visible rows
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const once = (make) => { const kept = new Map(); return (key) => { if (!kept.has(key)) kept.set(key, make(key)); return kept.get(key); }; };
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const collator = new Intl.Collator(undefined, { numeric: true });

  const index = read("index");
  const variants = index.variants; // [name, rank or null]
  const clips = index.clips.map(([name, seconds, language, words], n) => ({ n, name, seconds, language, words }));
  const figuresOf = once((variant) => read(`figures-${variant}`));
  const chunkOf = once((chunk) => read(`texts-${chunk}`));
  const textsOf = (n) => chunkOf(Math.floor(n / index.chunk))[n % index.chunk];
  const playersOf = once(() => (byId("audio") ? read("audio") : {}));

  // ---- figures for people; the same digits as in the report's tables
  const figure = (value) => {
    if (value == null) return "";
    if (value !== 0 && Math.abs(value) < 0.1) return Number(value.toPrecision(2)).toString();
    return value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
  };
  const percent = (value) => (value == null ? "" : value.toFixed(2));
  const answer = (variant, n) => {
    const f = figuresOf(variant), clip = clips[n];
    const s = f.s[n], d = f.d[n], i = f.i[n], wall = f.wall[n];
    return {
      s, d, i, wall,
      errors: s == null ? null : s + d + i,
      wer: s == null || !clip.words ? null : (100 * (s + d + i)) / clip.words,
      rtfx: wall ? clip.seconds / wall : null,
      answered: f.answered[n] === 1,
      error: f.error[n],
      text: f.text[n],
      unstable: f.unstable.includes(n),
    };
  };

  // ---- colours: those of the system unless the reader chooses others
  const theme = byId("theme");
  const remembered = (value) => {
    try { return value === undefined ? localStorage.getItem("asrgate-theme") || "" : localStorage.setItem("asrgate-theme", value); }
    catch { return ""; } // a page opened from a file may not be allowed to store this
  };
  const paint = (value) => { if (value) document.documentElement.dataset.theme = value; else delete document.documentElement.dataset.theme; };
  theme.value = remembered();
  paint(theme.value);
  theme.addEventListener("change", () => { paint(theme.value); remembered(theme.value); });
  theme.parentElement.hidden = false;

  // ---- an address that names a closed section, or a part of one, opens it
  const reveal = () => {
    const target = location.hash && byId(location.hash.slice(1)), folded = target && target.closest("details");
    if (folded) { folded.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);

  // ---- sorting: a button in every heading
  const makeSortable = (heading, sort) => {
    const button = element("button", { type: "button", className: "sort", textContent: heading.textContent });
    if (heading.title) button.title = heading.title;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const isAscending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", isAscending ? "descending" : "ascending");
      sort(isAscending ? -1 : 1);
    });
  };
  const compare = (a, b, direction) => { // missing values come last in both directions
    const emptyA = a == null || a === "", emptyB = b == null || b === "";
    if (emptyA || emptyB) return emptyA - emptyB;
    return direction * (typeof a === "number" && typeof b === "number" ? a - b : collator.compare(a, b));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const isNumber = heading.classList.contains("number");
      const value = (row) => {
        const cell = row.cells[column];
        const text = cell.textContent.trim();
        if (!isNumber) return text;
        const number = parseFloat(text);
        return Number.isNaN(number) ? null : number;
      };
      makeSortable(heading, (direction) => {
        for (const body of table.tBodies) { // ranked and unranked rows stay apart
          const rows = [...body.rows].filter((row) => row.dataset.variant && row.className !== "why").map((row) => [value(row), row]);
          rows.sort((a, b) => compare(a[0], b[0], direction));
          for (const [, row] of rows) {
            const why = body.querySelector(`.why[data-variant="${row.dataset.variant}"]`);
            body.append(...[row, why].filter(Boolean)); // the reason stays below its row
          }
        }
      });
    });
  }

  // ---- columns for which a table has no room wait behind "more columns", the least important first
  const KEPT = 10; // importance of the figures that a ranking is about: the first of them stays, and what is above
  const drop = (table, column, isDropped) => {
    for (const row of table.rows) if (row.className !== "why") row.cells[column]?.classList.toggle("dropped", isDropped); // a model's name spans all
  };
  const fit = (fitted) => {
    const more = fitted.querySelector(".more"), region = fitted.querySelector(".wide"), table = region.firstElementChild;
    if (!region.clientWidth) return; // folded
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((_, column) => drop(table, column, false));
    const first = headings.findIndex((heading) => Number(heading.dataset.importance) === KEPT);
    const spare = headings.map((heading, column) => [Number(heading.dataset.importance || 0), -column]).filter(([importance, column]) => importance && importance <= KEPT && -column !== first);
    spare.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const all = more.querySelector("input").checked, count = spare.length;
    table.classList.add("measuring");
    while (!all && spare.length && table.offsetWidth > region.clientWidth) drop(table, -spare.shift()[1], true);
    table.classList.remove("measuring");
    more.hidden = !all && spare.length === count;
    more.querySelector(".count").textContent = all ? "" : `(${count - spare.length})`;
  };
  const refit = new ResizeObserver((entries) => { for (const entry of entries) fit(entry.target.parentElement); });
  for (const fitted of document.querySelectorAll(".fitted")) {
    fit(fitted);
    refit.observe(fitted.querySelector(".wide"));
    fitted.querySelector(".more input").addEventListener("change", () => fit(fitted));
  }

  // ---- a row under the pointer is highlighted in the charts, and vice versa
  const main = byId("main");
  const pick = (variant) => {
    main.classList.toggle("picked", variant != null);
    for (const shown of document.querySelectorAll(".pick")) shown.classList.remove("pick");
    if (variant == null) return;
    for (const place of main.querySelectorAll(`.drawing .v${variant}, tr[data-variant="${variant}"]`)) place.classList.add("pick");
  };
  const variantAt = (target) => {
    const place = target.closest("tr[data-variant], .mark");
    if (!place) return null;
    return place.dataset.variant ?? ([...place.classList].find((name) => /^v\d+$/.test(name)) || "").slice(1) ?? null;
  };
  document.addEventListener("pointerover", (event) => pick(variantAt(event.target) || null));

  // ---- differences
  const CODES = ["swap", "gone", "new"];
  const diff = (reference, edits) => {
    const words = reference ? reference.split(" ") : [], made = [];
    const plain = (from, to) => { if (to > from) made.push(document.createTextNode(words.slice(from, to).join(" ") + " ")); };
    let place = 0;
    for (let e = 0; e < edits.length; e += 4) {
      const [code, start, end, heard] = edits.slice(e, e + 4), kind = CODES[code];
      plain(place, start);
      const extra = kind === "swap" ? " swap" : "";
      if (end > start) made.push(element("del", { className: `edit${extra}`, textContent: words.slice(start, end).join(" ") }));
      if (heard) made.push(element("ins", { className: `edit${extra}`, textContent: heard }));
      place = end;
    }
    plain(place, words.length);
    return made;
  };
  const said = (n, a, asWritten) => { // a variant's answer, as nodes
    if (!a.answered) return [element("span", { className: "failed", textContent: a.error ? `no answer: ${a.error}` : "no answer" })];
    if (a.text == null) return [element("span", { textContent: index.texts ? "" : "(text not stored)" })];
    const [, normal, texts] = textsOf(n), [written, edits] = texts[a.text];
    if (asWritten || edits == null) return [written === "" ? element("em", { textContent: "(empty)" }) : document.createTextNode(written)];
    const nodes = diff(normal, edits);
    return nodes.length ? nodes : [element("em", { textContent: "(empty)" })];
  };

  // ---- clips: only the visible rows exist
  const scroll = byId("clip-scroll"), table = byId("clip-table"), body = table.tBodies[0], detail = byId("clip-detail");
  const choice = byId("variant"), find = byId("find"), wrong = byId("wrong"), asWritten = byId("as-written"), players = byId("players");
  const KEYS = ["seconds", "words", "wer", "s", "d", "i", "wall", "rtfx"];
  const WRITE = { seconds: (v) => v.toFixed(1), words: String, wer: percent, s: String, d: String, i: String, wall: figure, rtfx: figure };
  let listed = [], current = 0, shown = null, order = { key: "name", direction: 1 }, rowHeight = 34, printing = false;
  const variant = () => Number(choice.value);
  const valueOf = (clip, key) => (key in clip ? clip[key] : answer(variant(), clip.n)[key]);

  const matches = (clip, wanted) => {
    if (clip.name.toLowerCase().includes(wanted)) return true;
    const [reference, , texts] = textsOf(clip.n);
    return (reference || "").toLowerCase().includes(wanted) || texts.some(([text]) => text.toLowerCase().includes(wanted));
  };
  const list = () => {
    const wanted = find.value.trim().toLowerCase();
    listed = clips.filter((clip) => {
      if (wrong.checked) { const a = answer(variant(), clip.n); if (a.answered && !a.errors) return false; }
      return !wanted || matches(clip, wanted);
    });
    const keyed = listed.map((clip) => [valueOf(clip, order.key), clip]);
    keyed.sort((a, b) => compare(a[0], b[0], order.direction) || a[1].n - b[1].n);
    listed = keyed.map(([, clip]) => clip);
    current = Math.max(0, Math.min(current, listed.length - 1));
    byId("count").textContent = `${listed.length} of ${clips.length} clips`;
    table.setAttribute("aria-rowcount", listed.length + 1);
    draw();
  };
  const row = (clip, place) => {
    const a = answer(variant(), clip.n);
    const open = element("button", { type: "button", className: "open", textContent: clip.name, title: clip.name, tabIndex: place === current ? 0 : -1 });
    const made = element("tr", { className: shown === clip.n ? "shown" : "" }, element("th", { scope: "row" }, open));
    for (const key of KEYS) {
      const value = key in clip ? clip[key] : a[key];
      made.append(element("td", { className: "number", textContent: value == null ? "" : WRITE[key](value) }));
    }
    made.append(element("td", { className: "said" }, ...said(clip.n, a, asWritten.checked)));
    made.dataset.place = place;
    made.setAttribute("aria-rowindex", place + 2);
    return made;
  };
  const space = (height) => {
    const made = element("tr", { className: "space" }, element("td"));
    made.setAttribute("aria-hidden", "true");
    made.style.height = `${height}px`;
    return made;
  };
  const draw = () => {
    const first = printing ? 0 : Math.max(0, Math.floor(scroll.scrollTop / rowHeight) - MARGIN_ROWS);
    const count = printing ? PRINTED_CLIPS : Math.ceil((scroll.clientHeight || 600) / rowHeight) + 2 * MARGIN_ROWS;
    const last = Math.min(listed.length, first + count);
    const focused = body.contains(document.activeElement);
    const rows = listed.slice(first, last).map((clip, i) => row(clip, first + i));
    if (current < first || current >= last) { if (rows.length) rows[0].querySelector("button").tabIndex = 0; }
    body.replaceChildren(space(first * rowHeight), ...rows, space(printing ? 0 : (listed.length - last) * rowHeight));
    if (focused) focusCurrent();
  };
  const focusCurrent = () => {
    const target = body.querySelector(`tr[data-place="${current}"] button`);
    if (target) target.focus({ preventScroll: true });
  };
  const moveTo = (place) => {
    if (!listed.length) return;
    current = Math.max(0, Math.min(place, listed.length - 1));
    const head = table.tHead.offsetHeight, top = current * rowHeight;
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    else if (top + rowHeight + head > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + rowHeight + head - scroll.clientHeight;
    draw();
    focusCurrent();
  };

  // ---- one clip, all variants
  const player = (clip) => {
    const encoded = players && players.checked ? playersOf("")[clip.name] : undefined;
    if (!encoded) return null;
    const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
    const made = element("audio", { controls: true, preload: "metadata", src: URL.createObjectURL(new Blob([bytes], { type: "audio/mpeg" })) });
    made.setAttribute("aria-label", `Recording of ${clip.name}`);
    return made;
  };
  const show = (n) => {
    const clip = clips[n], [reference] = textsOf(n);
    shown = n;
    detail.querySelectorAll("audio").forEach((old) => URL.revokeObjectURL(old.src));
    const head = element("tr");
    for (const name of ["variant", "WER %", "S", "D", "I", "median s", "RTFx", "text"]) {
      const cell = element("th", { scope: "col", textContent: name });
      if (name !== "variant" && name !== "text") cell.className = "number";
      head.append(cell);
    }
    const lines = variants.map(([name, rank], number) => {
      const a = answer(number, n);
      const label = rank == null ? `${name} (not ranked)` : name;
      const made = element("tr", {}, element("th", { scope: "row", textContent: label }));
      for (const key of ["wer", "s", "d", "i", "wall", "rtfx"]) made.append(element("td", { className: "number", textContent: a[key] == null ? "" : WRITE[key](a[key]) }));
      const cell = element("td", { className: "said" }, ...said(n, a, asWritten.checked));
      if (a.unstable) cell.append(element("em", { textContent: " (the text differed between rounds; this is the first round's)" }));
      made.append(cell);
      return made;
    });
    const close = element("button", { type: "button", textContent: "Close", onclick: hide });
    const none = index.texts ? "This clip has no reference text." : "The reference text was not stored.";
    detail.replaceChildren(
      element("h3", { id: "clip-name", textContent: clip.name }),
      element("p", { className: "note", textContent: `${clip.seconds} s, language ${clip.language}` + (clip.words == null ? "" : `, ${clip.words} words`) }),
      ...[player(clip)].filter(Boolean),
      reference == null ? element("p", { className: "note", textContent: none }) : element("p", { className: "reference", textContent: reference || "(nothing is said)" }),
      element("div", { className: "wide", tabIndex: 0 }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines))),
      element("p", {}, close),
    );
    const region = detail.querySelector(".wide");
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", `${clip.name}, all variants`);
    detail.hidden = false;
    draw();
  };
  const hide = () => {
    detail.hidden = true;
    const place = listed.findIndex((clip) => clip.n === shown);
    shown = null;
    if (place >= 0) moveTo(place); else draw();
  };

  // ---- wiring
  variants.forEach(([name, rank], number) => choice.append(element("option", { value: number, textContent: rank == null ? `${name} (not ranked)` : `${rank}. ${name}` })));
  for (const heading of table.tHead.rows[0].cells) {
    const key = heading.dataset.key;
    if (key) makeSortable(heading, (direction) => { order = { key, direction }; scroll.scrollTop = 0; current = 0; list(); });
  }
  const restart = () => { scroll.scrollTop = 0; current = 0; list(); };
  choice.addEventListener("change", list);
  wrong.addEventListener("change", restart);
  find.addEventListener("input", restart);
  for (const control of [asWritten, players].filter(Boolean)) control.addEventListener("change", () => { if (shown == null) draw(); else show(shown); });
  let waiting = false;
  scroll.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  body.addEventListener("click", (event) => {
    const target = event.target.closest("tr[data-place]");
    if (!target) return;
    current = Number(target.dataset.place);
    show(listed[current].n);
    detail.focus();
  });
  body.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(scroll.clientHeight / rowHeight) - 2);
    const steps = { ArrowDown: current + 1, ArrowUp: current - 1, PageDown: current + page, PageUp: current - page, Home: 0, End: listed.length - 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(steps[event.key]);
  });
  detail.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  const unfold = [];
  addEventListener("beforeprint", () => {
    printing = true;
    for (const folded of document.querySelectorAll(".section:not([open]), .line:not([open]), figure details:not([open])")) { folded.open = true; unfold.push(folded); }
    if (listed.length > PRINTED_CLIPS) byId("clip-table").caption.textContent = `The first ${PRINTED_CLIPS} of ${listed.length} clips`;
    draw();
  });
  addEventListener("afterprint", () => { printing = false; unfold.splice(0).forEach((folded) => { folded.open = false; }); draw(); });

  const measure = () => { // the height of a row, which only shows while the section is open
    const drawn = body.querySelector("tr[data-place]"), height = drawn && drawn.getBoundingClientRect().height;
    if (height) { rowHeight = height; draw(); }
  };
  if (variants.length && clips.length) {
    for (const part of [byId("clip-tools"), byId("clip-legend"), scroll]) part.hidden = false;
    table.querySelector('[data-key="name"]').setAttribute("aria-sort", "ascending");
    list();
    byId("clips").addEventListener("toggle", measure);
    measure();
  }
  reveal();
  performance.mark("asrgate-ready");
})();
