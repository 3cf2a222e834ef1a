// What a token adds to the reward: where a pointer is on it, or the arrow keys have gone to it.
(() => {
  const tip = document.getElementById("tip");
  let shown = null; // the token that the tip is of
  const place = () => {
    const box = shown.getClientRects()[0] ?? shown.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + 6;
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : Math.max(8, above)}px`;
  };
  const line = (name, value) => {
    const row = document.createElement("div");
    const term = document.createElement("span");
    term.textContent = name;
    row.append(term, value.replace("-", "−"));
    return row;
  };
  for (const text of document.querySelectorAll(".tokens")) {
    const tokens = [...text.querySelectorAll("b")];
    const cursor = text.parentElement.querySelector(".cursor");
    let at = -1;
    const show = (i) => {
      tokens[at]?.classList.remove("at");
      at = i;
      const token = tokens[at];
      token.classList.add("at");
      const x = (1000 * at) / Math.max(1, tokens.length - 1);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      const text = document.createElement("strong");
      text.textContent = token.textContent.slice(0, 80).replaceAll(" ", "␣").replaceAll("\n", "");
      tip.replaceChildren(
        text,
        line("adds", token.dataset.d ?? "not known"),
        line("reward so far", token.dataset.r ?? "not known"),
      );
      tip.hidden = false;
      shown = token;
      place();
    };
    const hide = () => {
      tokens[at]?.classList.remove("at");
      cursor.removeAttribute("x1");
      tip.hidden = true;
    };
    text.addEventListener("pointerover", (event) => {
      const i = tokens.indexOf(event.target.closest("b"));
      if (i >= 0) show(i);
    });
    text.addEventListener("pointerleave", hide);
    text.addEventListener("blur", hide);
    text.addEventListener("keydown", (event) => {
      if (event.target !== text) return;
      const last = tokens.length - 1;
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
      if (event.key === "Escape") hide();
      if (to === undefined) return;
      event.preventDefault();
      const i = Math.min(last, Math.max(0, to));
      const fold = tokens[i].closest("details");
      if (fold) fold.open = true;
      tokens[i].scrollIntoView({ block: "nearest" });
      show(i);
    });
  }
  addEventListener("scroll", () => { if (!tip.hidden) place(); }, { passive: true, capture: true });
  // What is folded is printed all the same.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
})();
