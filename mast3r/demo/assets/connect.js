// Ties the drawings to Gradio: each lives in a gr.HTML whose value names what to show.
"use strict";
(() => {
  const shown = (window.mast3r.shown = new Map());
  const waiting = new Map();

  window.mast3r.start = (kind, name, element, props, watch) => {
    const view = new window.mast3r[kind](element, { ...props.options, ...waiting.get(name) });
    shown.set(name, view);
    watch("value", () => view.show(props.value));
    view.show(props.value);
  };

  // Sliders and boxes call this; a drawing whose tab was not open yet takes the options when it appears.
  window.mast3r.set = (name, options) => {
    waiting.set(name, { ...waiting.get(name), ...options });
    shown.get(name)?.set(options);
  };

  window.mast3r.goTo = (name, i) => shown.get(name)?.goTo(i);

  // On a narrow screen the results lie below what can be seen.
  window.mast3r.reveal = (id) => {
    const results = document.getElementById(id);
    if (results && results.getBoundingClientRect().top > 0.6 * window.innerHeight) {
      results.scrollIntoView({ behavior: "smooth", block: "start" });
    }
  };
})();
