def corpus(folder, seeds):
    return [], {}
