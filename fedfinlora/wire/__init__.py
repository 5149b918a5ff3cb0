"""What crosses between server and bank: messages, their form and limits, and the codes of refusals."""
